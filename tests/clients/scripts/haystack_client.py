"""Haystack: a chat generator with streams, tools and structured answers, and a pipeline of two parts."""

from __future__ import annotations

import json

from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret
from order import ANSWER, BASE, QUESTION, Order, check_order

asked = [ChatMessage.from_user(QUESTION)]
greedy = {"temperature": 0, "max_tokens": 120}


def generator(**settings: object) -> OpenAIChatGenerator:
    """One that talks to the server."""
    return OpenAIChatGenerator(
        api_key=Secret.from_token("x"),
        model="base",
        api_base_url=BASE + "/v1",
        max_retries=0,
        generation_kwargs=greedy,
        **settings,
    )


assert ANSWER in generator().run(asked)["replies"][0].text
pieces: list[str] = []
streamed = generator(streaming_callback=lambda chunk: pieces.append(chunk.content or "")).run(asked)["replies"][0]
assert ANSWER in "".join(pieces) == streamed.text

structured = generator().run(asked, generation_kwargs={**greedy, "response_format": Order})["replies"][0]
check_order(json.loads(structured.text))

tool = Tool(
    name="price",
    description="What so many of something cost.",
    parameters=Order.model_json_schema(),
    function=lambda what, number: f"{6 * number} shells for {what}",
)
called = generator(tools=[tool]).run(asked, generation_kwargs={**greedy, "tool_choice": "required"})["replies"][0]
assert called.tool_calls[0].tool_name == "price"
check_order(called.tool_calls[0].arguments)
result = ChatMessage.from_tool(tool.invoke(**called.tool_calls[0].arguments), origin=called.tool_calls[0])
assert generator(tools=[tool]).run([*asked, called, result])["replies"][0].text, "the conversation goes on with the result"

pipeline = Pipeline()
pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user("{{ question }}")], required_variables=["question"]))
pipeline.add_component("llm", generator())
pipeline.connect("prompt", "llm.messages")
assert ANSWER in pipeline.run({"prompt": {"question": QUESTION}})["llm"]["replies"][0].text
print("ok")
