"""The real openai client, on a real socket."""

from __future__ import annotations

import asyncio

import openai
import pytest
from server_fakes import LiveServer


@pytest.fixture
def client(live: LiveServer):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client, live):
    answer = client.chat.completions.create(model="a", messages=[{"role": "user", "content": "hi"}])
    choice = answer.choices[0]
    assert choice.message.content == "[a] <user>hi<assistant>"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "a"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == len("<user>hi<assistant>")
    assert answer.usage.completion_tokens == len(choice.message.content)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.model_extra["evenflow"] == {"queue_s": 0.25, "prefill_s": 0.5, "decode_s": 1.0}


@pytest.mark.parametrize(("model", "who"), [("base", "base"), ("alias", "base"), ("b", "b"), ("base:b", "b")])
def test_model_names(client, model, who):
    answer = client.completions.create(model=model, prompt="x")
    assert answer.choices[0].text == f"[{who}] x"
    assert answer.model == model


def test_chat_content_parts_and_developer_role(client):
    answer = client.chat.completions.create(
        model="base",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        ],
        max_completion_tokens=200,
        max_tokens=1,
    )
    assert answer.choices[0].message.content == "[base] <system>be brief<user>one\ntwo<assistant>"


def test_chat_stream(client):
    chunks = list(
        client.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "[base] <user>hi<assistant>"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len("[base] <user>hi<assistant>")
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_without_usage_has_none_and_ends_with_done(live):
    body = {"model": "base", "prompt": "q", "stream": True}
    with live.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.read().decode().split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    assert all("usage" not in event for event in events)


def test_n_choices_have_their_own_seeds(client):
    answer = client.chat.completions.create(model="base", messages=[{"role": "user", "content": "hi"}], n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content[-6:] for choice in answer.choices] == ["seed=7", "seed=8", "seed=9"]
    assert answer.usage.prompt_tokens == len("<user>hi<assistant>"), "a prompt counts once"
    assert answer.usage.completion_tokens == sum(len(choice.message.content) for choice in answer.choices)


def test_n_choices_in_a_stream(client):
    texts = ["", "", ""]
    for chunk in client.completions.create(model="base", prompt="hi", n=3, seed=1, stream=True, max_tokens=50):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["[base] hi seed=1", "[base] hi seed=2", "[base] hi seed=3"]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("one", ["[base] one"]),
        (["one", "two"], ["[base] one", "[base] two"]),
        ([104, 105], ["[base] hi"]),
        ([[104, 105], [104]], ["[base] hi", "[base] h"]),
    ],
)
def test_completion_prompts(client, prompt, texts):
    answer = client.completions.create(model="base", prompt=prompt)
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))


def test_batch_times_n(client):
    answer = client.completions.create(model="base", prompt=["x", "y"], n=2, seed=5, max_tokens=50)
    assert [c.text for c in answer.choices] == [
        "[base] x seed=5",
        "[base] x seed=6",
        "[base] y seed=5",
        "[base] y seed=6",
    ]
    assert answer.usage.prompt_tokens == 4, "two prompts of BOS and one byte"


def test_default_and_longest_max_tokens(client):
    assert client.completions.create(model="base", prompt="y" * 40).usage.completion_tokens == 16
    answer = client.completions.create(model="base", prompt="y" * 40, max_tokens=5)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("[base", "length")


def test_stop_strings(client):
    answer = client.completions.create(model="base", prompt="one two three", stop=["two"], max_tokens=50)
    assert answer.choices[0].text == "[base] one "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_extra["stop_reason"] == "two"


def test_echo_with_logprobs(client):
    answer = client.completions.create(model="base", prompt="hi", echo=True, logprobs=2, max_tokens=3)
    choice = answer.choices[0]
    assert choice.text == "hi[ba"
    assert choice.logprobs.tokens == ["<bos>", "h", "i", "[", "b", "a"]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5, -0.5, -0.5]
    assert choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.top_logprobs[1] == {"h": -0.5, "i": -1.5}
    assert choice.logprobs.text_offset == [0, 5, 6, 7, 8, 9]


def test_echo_in_a_stream(client):
    chunks = list(client.completions.create(model="base", prompt=[104, 105], echo=True, logprobs=1, max_tokens=2, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hi[b"
    assert [token for chunk in chunks for token in chunk.choices[0].logprobs.tokens] == ["h", "i", "[", "b"]
    assert [offset for chunk in chunks for offset in chunk.choices[0].logprobs.text_offset] == [0, 1, 2, 3]


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="base", messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2, max_tokens=4
    )
    content = answer.choices[0].logprobs.content
    assert [entry.token for entry in content] == ["[", "b", "a", "s"]
    assert content[0].bytes == [ord("[")]
    assert [top.logprob for top in content[0].top_logprobs] == [-0.5, -1.5]


def test_vllm_extras(client):
    answer = client.completions.create(
        model="base",
        prompt=[104, 105],
        max_tokens=2,
        extra_body={
            "return_token_ids": True,
            "prompt_logprobs": 1,
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "ignore_eos": True,
            "min_tokens": 1,
            "stop_token_ids": [3],
        },
    )
    extra = answer.choices[0].model_extra
    assert extra["token_ids"] == [ord("["), ord("b")]
    assert extra["prompt_token_ids"] == [104, 105]
    assert extra["prompt_logprobs"][0] is None
    assert extra["prompt_logprobs"][1] == {"105": {"logprob": -0.5, "decoded_token": "i", "rank": 1}}


def test_template_variables(client):
    answer = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "x"}],
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    assert answer.choices[0].message.content == "[base] <user>x<enable_thinking=False><assistant>"


def test_models(client, live):
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"base", "alias", "a", "b"}
    assert models["a"].model_extra["parent"] == "base"
    assert models["base"].model_extra["parent"] is None
    assert models["base"].model_extra["max_model_len"] == 256
    assert models["a"].model_extra["root"] == live.state.engine.infos["a"].digest
    assert client.models.retrieve("a").id == "a"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (openai.BadRequestError, {"model": "base", "prompt": "x", "temperature": -1}),
        (openai.BadRequestError, {"model": "base", "prompt": "x" * 300}),
        (openai.NotFoundError, {"model": "nobody", "prompt": "x"}),
    ],
)
def test_errors_are_the_clients_own(client, error, fields):
    with pytest.raises(error) as caught:
        client.completions.create(**fields)
    assert caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"


def test_async_clients_side_by_side(live):
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:

            async def one(i: int) -> str:
                stream = await client.chat.completions.create(
                    model="ab"[i % 2], messages=[{"role": "user", "content": f"number {i}"}], stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(i) for i in range(20)))

    assert asyncio.run(main()) == [f"[{'ab'[i % 2]}] <user>number {i}<assistant>" for i in range(20)]
