"""The demo's clients: what they send, what they measure, and what their accounts add up to."""

from __future__ import annotations

import asyncio
import json
import math
from random import Random

import httpx
import pytest

from evenflow.bench.load.figures import quantile
from evenflow.bench.load.stream import RequestFailed, StreamedReply, stream
from evenflow.demo.clients import ClientPlan, ClientRecord, run_client
from evenflow.demo.contest import compete, register
from evenflow.demo.run import client_plans
from evenflow.demo.stage import embedded_stage

PROMPT_TOKENS, OUTPUT_TOKENS = 7, 4
ANNA = {"x-evenflow-client": "anna"}


def _events(is_chat: bool) -> bytes:
    """A stream as our server writes it: role first, then text; the last token (end of sequence) has no text."""
    words = ["3", " honey", " cakes"]
    events: list[dict] = []
    if is_chat:
        events.append({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    for word in words:
        part = {"delta": {"content": word}} if is_chat else {"text": word}
        events.append({"choices": [{"index": 0, **part}]})
    last: dict[str, object] = {"delta": {}} if is_chat else {"text": ""}
    events.append({"choices": [{"index": 0, "finish_reason": "stop", **last}]})
    events.append({"choices": [], "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": OUTPUT_TOKENS}})
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return b": keep-alive\n\n" + b"".join(lines) + b"data: [DONE]\n\n"


class _Server:
    """Answers as the server does, and remembers who asked for what."""

    def __init__(self, delay_s: float = 0.0, fail_after: int | None = None) -> None:
        self.seen: list[tuple[str, str, dict]] = []
        self.loaded: dict[str, str] = {}
        self._delay_s = delay_s
        self._fail_after = fail_after

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.loaded:
                return httpx.Response(400, json={"error": {"message": "taken"}})
            self.loaded[body["lora_name"]] = body["lora_path"]
            return httpx.Response(200, text="ok")
        self.seen.append((request.url.path, request.headers["x-evenflow-client"], body))
        if self._fail_after is not None and len(self.seen) > self._fail_after:
            return httpx.Response(503, json={"error": {"message": "full"}})
        await asyncio.sleep(self._delay_s)
        if not body.get("stream"):
            usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": OUTPUT_TOKENS}
            timings = {"evenflow": {"queue_s": 0.001, "prefill_s": 0.0005, "decode_s": 0.1}}
            return httpx.Response(200, json={"choices": [{"text": "3 honey cakes"}], "usage": usage | timings})
        data = _events(request.url.path.endswith("chat/completions"))
        parts = [data[i : i + 13] for i in range(0, len(data), 13)]  # events arrive cut anywhere

        async def pieces():
            for part in parts:
                yield part

        return httpx.Response(200, content=pieces())

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://demo")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_is_read_whatever_way_it_is_cut(path):
    server, reply, counted = _Server(), StreamedReply(sent_s=0.0), []

    async def main():
        async with server.client() as http:
            await stream(http, path, {"model": "a"}, ANNA, reply, lambda: counted.append(1))

    asyncio.run(main())
    assert reply.text == "3 honey cakes"
    assert len(counted) == 3
    assert (reply.prompt_tokens, reply.completion_tokens) == (PROMPT_TOKENS, OUTPUT_TOKENS)
    assert reply.sent_s < reply.first_token_s <= reply.finished_s
    assert server.seen == [(path, "anna", {"model": "a", "stream": True, "stream_options": {"include_usage": True}})]
    assert len(reply.token_times_s) == 3


def test_an_error_of_the_server_is_told_with_its_text():
    async def main():
        async with _Server(fail_after=0).client() as http:
            await stream(http, "/v1/completions", {}, ANNA, StreamedReply(sent_s=0.0))

    with pytest.raises(RequestFailed, match=r"503.*full"):
        asyncio.run(main())


def test_everything_adds_up_after_a_round():
    server = _Server(delay_s=0.002)
    plans = client_plans([f"tenant-{i:04d}" for i in range(40)], greedy=8, stage=embedded_stage())

    async def main():
        async with server.client() as http:
            return await compete(http, plans, 1.6, lambda *_: None)

    results = asyncio.run(main())
    assert [r.name for r in results] == ["greedy", "anna", "ben", "cleo"]
    assert math.isclose(sum(r.share for r in results), 1.0)
    for result in results:
        sent = sum(1 for _, client, _ in server.seen if client == result.name)
        assert result.num_requests + result.num_cut_off == sent
        assert result.num_requests > 0
        assert result.tokens >= result.num_requests * (PROMPT_TOKENS + OUTPUT_TOKENS)
        assert result.service >= result.num_requests * (PROMPT_TOKENS + 2 * OUTPUT_TOKENS)
        assert 0 <= result.ttft_p50_s <= result.ttft_p99_s <= 1.6
        services = [s for _, s in result.timeline]
        assert services == sorted(services)
        assert len(services) >= 5
    greedy = [body for _, client, body in server.seen if client == "greedy"]
    assert len({body["model"] for body in greedy}) > 20
    assert {body["model"] for _, client, body in server.seen if client == "cleo"} & {"guide", "shout"}


def test_a_failing_server_ends_the_round():
    async def main():
        async with _Server(fail_after=20).client() as http:
            await compete(http, client_plans(["a"], greedy=4, stage=embedded_stage()), 5.0, lambda *_: None)

    with pytest.raises(RequestFailed, match="503"):
        asyncio.run(main())


def test_all_adapters_are_registered_and_a_refusal_is_told(tmp_path):
    server = _Server()
    folders = {f"t{i}": tmp_path / str(i) for i in range(25)}
    told = []

    async def main(more):
        async with server.client() as http:
            await register(http, more, lambda what, share: told.append(share))

    asyncio.run(main(folders))
    assert server.loaded == {name: str(path) for name, path in folders.items()}
    assert told[-1] == 1.0
    assert all(0 <= share <= 1 for share in told)
    with pytest.raises(RequestFailed, match="t3 answered 400"):
        asyncio.run(main({"t3": tmp_path}))


def test_a_request_that_waits_at_the_end_counts_with_its_wait():
    account = ClientRecord(replies=[StreamedReply(sent_s=1.0, first_token_s=1.5, finished_s=2.0), StreamedReply(sent_s=2.0)])
    assert account.waits_s(end_s=10.0) == [0.5, 8.0]
    assert len(account.finished) == 1
    account.is_streaming = False
    assert account.waits_s(end_s=10.0) == [0.5], "nothing is known of a whole answer before its end"


def test_quantile_is_the_nearest_rank():
    values = [float(i) for i in range(1, 101)]
    assert quantile(values, 0.5) == 50.0
    assert quantile(values, 0.99) == 99.0
    assert quantile([3.0], 0.99) == 3.0
    assert math.isnan(quantile([], 0.5))


def test_a_plan_draws_the_same_requests_from_the_same_seed():
    plan = client_plans(["a", "b"], greedy=2, stage=embedded_stage())[0]
    assert [plan.body(Random(4)) for _ in range(3)] == [plan.body(Random(4)) for _ in range(3)]
    assert plan.body(Random(4)) != plan.body(Random(5))


def test_a_client_waits_for_its_start():
    plan = ClientPlan(name="late", habit="", concurrency=1, pause_s=0.0, starts_s=5.0, adapters=("a",))
    account = ClientRecord()

    async def main():
        async with _Server().client() as http:
            await asyncio.wait_for(run_client(plan, http, account, 0), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert account.replies == []
