"""Other people's clients against a running server: run by ``make test-clients``, in an environment of its own.

The server is the embedded model with a chat template that has a place for tools. Each test asserts on content: what a
schema or a tool's parameters demand, and what the model was trained to know.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from environment import NODE, python_of

httpx = pytest.importorskip("httpx")
HERE = Path(__file__).parent
PORT = 8137
BASE = f"http://127.0.0.1:{PORT}"
QUESTION = "Where is the bakery?"
ANSWER = "Gull Street"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    """``EVENFLOW_PYTHON`` is the interpreter that evenflow is installed in."""
    python = os.environ.get("EVENFLOW_PYTHON")
    if python is None:
        pytest.skip("run by make test-clients")
    words = ["serve", "--demo", "--port", str(PORT), "--chat-template", str(HERE / "tools.jinja")]
    child = subprocess.Popen([python, "-m", "evenflow.cli.main", *words])
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert child.poll() is None, "the server ended"
            try:
                if httpx.get(BASE + "/ready").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        yield BASE
    finally:
        child.terminate()
        child.wait(30)


class Goods(StrEnum):
    CAKE = "honey cake"
    ROPE = "rope"


def order_class() -> Any:
    from pydantic import BaseModel, Field

    class Order(BaseModel):
        """An order in a shop."""

        what: Goods
        number: int = Field(ge=1, le=9)

    return Order


def price(what: Goods, number: int) -> str:
    """What so many of something cost, in shells."""
    return f"{6 * number} shells for {what}"


TOOL: dict[str, Any] = {
    "name": "price",
    "description": "What it costs.",
    "parameters": {
        "type": "object",
        "properties": {"what": {"enum": ["honey cake", "rope"]}, "number": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["what", "number"],
        "additionalProperties": False,
    },
}


def check_arguments(arguments: dict[str, Any]) -> None:
    assert arguments["what"] in list(Goods)
    assert 1 <= int(arguments["number"]) <= 9


def test_openai() -> None:
    import openai

    client = openai.OpenAI(base_url=BASE + "/v1", api_key="x", max_retries=0)
    asked: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    assert ANSWER in client.chat.completions.create(**asked, max_tokens=40).choices[0].message.content
    tools = [{"type": "function", "function": TOOL}]
    calls = client.chat.completions.create(**asked, tools=tools, tool_choice="required", max_tokens=120).choices[0]
    assert calls.finish_reason in ("tool_calls", "length")
    check_arguments(json.loads(calls.message.tool_calls[0].function.arguments))
    order = client.chat.completions.parse(**asked, response_format=order_class(), max_tokens=120).choices[0].message.parsed
    check_arguments(order.model_dump())
    assert ANSWER in client.responses.create(model="base", input=QUESTION, temperature=0, max_output_tokens=40).output_text
    parsed = client.responses.parse(model="base", input=QUESTION, text_format=order_class(), max_output_tokens=120)
    check_arguments(parsed.output_parsed.model_dump())
    with client.responses.stream(model="base", input=QUESTION, temperature=0, max_output_tokens=40) as stream:
        assert ANSWER in stream.get_final_response().output_text


def test_anthropic() -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=BASE, api_key="x", max_retries=0)
    asked: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 120}
    greedy: dict[str, Any] = {"extra_body": {"temperature": 0}}
    assert ANSWER in client.messages.create(**asked, **greedy).content[0].text
    with client.messages.stream(**asked, **greedy) as stream:
        assert ANSWER in "".join(stream.text_stream)
    tool = {"name": "price", "input_schema": TOOL["parameters"]}
    message = client.messages.create(**asked, tools=[tool], tool_choice={"type": "tool", "name": "price"})
    check_arguments(message.content[-1].input)
    assert client.messages.count_tokens(model="base", messages=asked["messages"]).input_tokens > 3
    with pytest.raises(anthropic.BadRequestError, match="nobody"):
        client.messages.create(**asked, tools=[tool], tool_choice={"type": "tool", "name": "nobody"})


def test_litellm() -> None:
    import litellm

    asked: dict[str, Any] = {"api_base": BASE + "/v1", "api_key": "x", "model": "openai/base", "max_tokens": 120}
    said = litellm.completion(**asked, messages=[{"role": "user", "content": QUESTION}], temperature=0)
    assert ANSWER in said.choices[0].message.content
    tools = [{"type": "function", "function": TOOL}]
    said = litellm.completion(**asked, messages=[{"role": "user", "content": QUESTION}], tools=tools, tool_choice="required")
    check_arguments(json.loads(said.choices[0].message.tool_calls[0].function.arguments))
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**asked, messages=[{"role": "user", "content": "x " * 3000}])


def test_langchain_openai() -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=BASE + "/v1", api_key="x", model="base", max_tokens=120, temperature=0)
    assert ANSWER in model.invoke(QUESTION).content
    check_arguments(model.with_structured_output(order_class(), method="json_schema").invoke(QUESTION).model_dump())
    bound = model.bind_tools([{"type": "function", "function": TOOL}], tool_choice="required")
    check_arguments(bound.invoke(QUESTION).tool_calls[0]["args"])
    assert ANSWER in "".join(str(chunk.content) for chunk in model.stream(QUESTION))


def test_instructor() -> None:
    import instructor
    import openai

    # Its other modes write the schema into the prompt, which the embedded model's context does not hold.
    client = instructor.from_openai(openai.OpenAI(base_url=BASE + "/v1", api_key="x"), mode=instructor.Mode.TOOLS)
    order = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": QUESTION}],
        response_model=order_class(),
        max_tokens=120,
        max_retries=0,
    )
    check_arguments(order.model_dump())


def test_pydantic_ai() -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("base", provider=OpenAIProvider(base_url=BASE + "/v1", api_key="x"))
    agent = Agent(model, output_type=order_class(), model_settings={"max_tokens": 120, "temperature": 0.0})
    check_arguments(agent.run_sync(QUESTION).output.model_dump())


def test_openai_agents() -> None:
    import agents
    import openai

    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=BASE + "/v1", api_key="x")
    called: list[tuple[Goods, int]] = []

    @agents.function_tool
    def cost(what: Goods, number: int) -> str:
        """What it costs."""
        called.append((what, number))
        return price(what, number)

    for kind in (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel):
        called.clear()
        agent = agents.Agent(
            name="shop",
            instructions="Answer.",
            model=kind("base", client),
            tools=[cost],
            tool_use_behavior="stop_on_first_tool",
            model_settings=agents.ModelSettings(tool_choice="required", max_tokens=120, store=False),
        )
        result = asyncio.run(agents.Runner.run(agent, QUESTION))
        assert called
        assert "shells for" in result.final_output


@pytest.mark.parametrize(
    ("script", "environment"),
    [
        ("llama_index_client", "env-clients-frameworks"),
        ("haystack_client", "env-clients-frameworks"),
        ("litellm_proxy", "env-clients-proxy"),
    ],
)
def test_those_with_an_environment_of_their_own(script: str, environment: str) -> None:
    python = python_of(environment)
    if not python.exists():
        pytest.skip(f"{python} does not exist: run by make test-clients")
    ended = subprocess.run([python, HERE / "scripts" / f"{script}.py", BASE], capture_output=True, text=True, timeout=400)
    assert (ended.returncode, ended.stdout.strip().splitlines()[-1:]) == (0, ["ok"]), ended.stderr[-4000:]


@pytest.mark.parametrize("script", ["openai_node", "ai_sdk"])
def test_those_for_node(script: str) -> None:
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules").is_dir():
        pytest.skip("node, or the packages that npm installs, are not there")
    for file in (HERE / "node").glob("*.mjs"):  # modules are looked for beside the script
        shutil.copy(file, NODE)
    ended = subprocess.run([node, NODE / f"{script}.mjs", BASE], capture_output=True, text=True, timeout=400)
    assert (ended.returncode, ended.stdout.strip()) == (0, "ok"), ended.stderr[-4000:]
