"""LlamaIndex: completions, chats, streams, tools and structured answers."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from order import ANSWER, BASE, QUESTION, Goods, Order, check_order

llm = OpenAILike(
    model="base",
    api_base=BASE + "/v1",
    api_key="x",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=1024,
    max_tokens=120,
    temperature=0.0,
    max_retries=0,
)
orders: list[dict] = []


def price(what: Goods, number: int) -> str:
    """What so many of something cost."""
    orders.append({"what": what, "number": number})
    return f"{6 * number} shells"


assert ANSWER in llm.complete(QUESTION).text
assert ANSWER in str(llm.chat([ChatMessage(role="user", content=QUESTION)]).message.content)
assert ANSWER in "".join(part.delta or "" for part in llm.stream_chat([ChatMessage(role="user", content=QUESTION)]))

tool = FunctionTool.from_defaults(price, fn_schema=Order)
response = llm.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
(call, *_) = llm.get_tool_calls_from_response(response)
assert call.tool_name == "price"
check_order(call.tool_kwargs)

answered = llm.predict_and_call([tool], user_msg=QUESTION, tool_choice="required")
check_order(orders[-1])
assert "shells" in str(answered)

check_order(llm.structured_predict(Order, PromptTemplate("{question}"), question=QUESTION))
print("ok")
