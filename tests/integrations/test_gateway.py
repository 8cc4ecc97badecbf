"""The dispatcher and the gateway in front of a backend that cannot be changed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.access.keys import hash_key
from evenflow.base.errors import ConfigError, RegistryError, Rejected
from evenflow.integrations.dispatcher import FairDispatcher
from evenflow.integrations.gateway import FairGateway
from evenflow.integrations.usage import AnswerTokens, max_output_tokens, prompt_tokens


@pytest.mark.parametrize("policy", ["vtc", "vtc-predict", "fcfs", "hierarchy", "drr:50", "cluster:1+vtc", "vtc-client-adapter"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_books_agree_after_every_turn_and_everybody_is_served(policy, seed):
    rng = random.Random(seed)

    async def one(dispatcher, client, served):
        async with dispatcher.turn(client, rng.randint(1, 50), adapter=rng.choice([None, "a", "b"])) as produced:
            for _ in range(rng.randint(1, 6)):
                await asyncio.sleep(0)
                produced(rng.randint(1, 3))
                dispatcher.check_integrity()
        served.append(client)

    async def run():
        dispatcher, served, tasks, num_cancelled = FairDispatcher(3, policy), [], [], 0
        for _ in range(40):
            tasks.append(asyncio.ensure_future(one(dispatcher, f"c{rng.randint(0, 3)}", served)))
            if rng.random() < 0.3:
                tasks[rng.randrange(len(tasks))].cancel()
            await asyncio.sleep(0)
            dispatcher.check_integrity()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        num_cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
        assert len(served) + num_cancelled == 40
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results), results
        dispatcher.check_integrity()
        assert dispatcher.num_running == dispatcher.num_waiting == 0

    asyncio.run(run())


def test_service_is_shared_by_weight_whatever_a_request_costs():
    async def run(policy):
        dispatcher = FairDispatcher(2, policy)
        dispatcher.shares.replace({"heavy": 3.0}, {}, {})
        service = {"heavy": 0, "light": 0}

        async def go_on(client, prompt, output):
            while True:
                async with dispatcher.turn(client, prompt) as produced:
                    for _ in range(output):
                        await asyncio.sleep(0)
                        produced(1)
                        service[client] += 2
                    service[client] += prompt

        tasks = [asyncio.ensure_future(go_on("heavy", 20, 10)) for _ in range(8)]
        tasks += [asyncio.ensure_future(go_on("light", 5, 3)) for _ in range(8)]
        for _ in range(3000):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return service["heavy"] / sum(service.values())

    assert asyncio.run(run("vtc")) == pytest.approx(0.75, abs=0.02)
    assert asyncio.run(run("fcfs")) == pytest.approx(40 / 51, abs=0.03)


def test_a_policy_may_refuse_and_so_may_a_full_house():
    async def run():
        limited = FairDispatcher(1, "rpm:1")
        async with limited.turn("a", 1):
            pass
        with pytest.raises(Rejected) as caught:
            await limited.enter("a", 1)
        assert caught.value.retry_after_s > 50
        full = FairDispatcher(1, "vtc", most_waiting=1)
        ticket = await full.enter("a", 1)
        waiting = asyncio.ensure_future(full.enter("a", 1))
        await asyncio.sleep(0)
        with pytest.raises(Rejected, match="1 requests wait already"):
            await full.enter("b", 1)
        full.leave(ticket)
        full.leave(await waiting)

    asyncio.run(run())
    with pytest.raises(ConfigError):
        FairDispatcher(0)
    with pytest.raises(RegistryError):
        FairDispatcher(1, "nonsense")


class Backend:
    """Streams as OpenAI does; counts who is at work."""

    def __init__(self, tokens=4, fails=False) -> None:
        self.tokens, self.fails = tokens, fails
        self.order: list[str] = []
        self.num_running = self.most_running = 0

    async def __call__(self, scope, receive, send) -> None:
        body = json.loads((await receive())["body"])
        self.order.append(body.get("user", ""))
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(self.tokens):
                await asyncio.sleep(0.001)
                if self.fails:
                    raise ConnectionError
                chunk = {"choices": [{"text": "x", "index": 0}], "usage": None}
                await send(
                    {"type": "http.response.body", "body": b"data: %s\n\n" % json.dumps(chunk).encode(), "more_body": True}
                )
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            self.num_running -= 1


class Call:
    """One request to a gateway."""

    def __init__(self, gateway, body, *, headers=(), path="/v1/completions") -> None:
        self.sent = []
        self.gone = asyncio.Event()
        lines = [(name.encode(), value.encode()) for name, value in headers]
        scope = {"type": "http", "method": "POST", "path": path, "headers": lines}
        self._first = True
        self._body = json.dumps(body).encode()
        self.task = asyncio.ensure_future(gateway(scope, self._receive, self._send))

    async def _receive(self):
        if self._first:
            self._first = False
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.sent.append(message)

    async def status(self):
        await self.task
        return self.sent[0]["status"] if self.sent else None


def test_a_quiet_client_waits_for_one_place_and_not_for_the_whole_line():
    async def run(policy):
        backend = Backend()
        gateway = FairGateway(backend, 2, policy)
        calls = [Call(gateway, {"prompt": "x" * 40, "user": "greedy"}) for _ in range(20)]
        await asyncio.sleep(0.002)
        calls.append(Call(gateway, {"prompt": "x" * 40, "user": "quiet"}))
        assert [await call.status() for call in calls] == [200] * 21
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "something was left running"
        gateway.dispatcher.check_integrity()
        assert backend.most_running == 2
        return backend.order.index("quiet")

    assert asyncio.run(run("vtc")) <= 5
    assert asyncio.run(run("fcfs")) == 20


def test_callers_that_go_while_they_wait_take_no_place_and_pay_nothing():
    async def run():
        backend = Backend(tokens=20)
        gateway = FairGateway(backend, 1)
        first = Call(gateway, {"prompt": "x", "user": "a"})
        await asyncio.sleep(0.002)
        gone = Call(gateway, {"prompt": "x", "user": "b"})
        last = Call(gateway, {"prompt": "x", "user": "c"})
        await asyncio.sleep(0.002)
        gone.gone.set()
        assert await gone.status() is None
        assert await first.status() == await last.status() == 200
        assert backend.order == ["a", "c"]
        gateway.dispatcher.check_integrity()

    asyncio.run(run())


def test_a_backend_that_fails_gives_its_place_back():
    async def run():
        backend = Backend(fails=True)
        gateway = FairGateway(backend, 1)
        for _ in range(3):
            call = Call(gateway, {"prompt": "x", "user": "a"})
            with contextlib.suppress(ConnectionError):
                await call.task
        gateway.dispatcher.check_integrity()
        assert gateway.dispatcher.num_running == 0

    asyncio.run(run())


def test_keys_decide_who_pays(tmp_path):
    path = tmp_path / "clients.toml"
    path.write_text(f'[clients.alice]\nweight = 2\napi_keys = ["{hash_key("k")}"]\n')

    async def run():
        gateway = FairGateway(Backend(), 1, clients=path)
        seen = []
        enter = gateway.dispatcher.enter
        gateway.dispatcher.enter = lambda client, *args: seen.append(client) or enter(client, *args)
        assert await Call(gateway, {"prompt": "x", "user": "bob"}).status() == 401
        assert await Call(gateway, {"prompt": "x", "user": "bob"}, headers=[("authorization", "Bearer k")]).status() == 200
        assert seen == ["alice"]
        assert await Call(gateway, {"user": "bob"}, path="/v1/models").status() == 200, "only what takes a place is asked"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": [1, 2, 3]}, 3),
        ({"prompt": [[1, 2], [3, 4, 5]]}, 5),
        ({"prompt": "x" * 9}, 3),
        (
            {
                "messages": [
                    {"role": "user", "content": "x" * 8},
                    {"role": "user", "content": [{"type": "text", "text": "y" * 4}]},
                ]
            },
            3,
        ),
        ({"prompt": [True, None, 1.5, {}]}, 0),
        ({}, 0),
    ],
)
def test_prompts_are_counted(body, tokens):
    assert prompt_tokens(body) == tokens


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"max_tokens": 7}, 7),
        ({"parameters": {"max_new_tokens": 5}}, 5),
        ({"options": {"num_predict": 3}}, 3),
        ({"max_tokens": True}, 512),
    ],
)
def test_limits_are_found_under_any_name(body, limit):
    assert max_output_tokens(body) == limit


def event(**content):
    return b"data: %s\n\n" % json.dumps(content).encode()


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (json.dumps({"choices": [{"text": "abc"}], "usage": {"completion_tokens": 30}}).encode(), 30),
        (event(choices=[{"text": "a"}]) * 5 + b"data: [DONE]\n\n", 5),
        (event(choices=[{"delta": {"role": "assistant"}}]) + event(choices=[{"delta": {"content": "a"}}]) * 4, 4),
        (event(choices=[{"text": "ab"}]) * 2 + event(choices=[], usage={"completion_tokens": 9}), 9),
        (
            event(choices=[{"text": "a"}], usage={"completion_tokens": 1})
            + event(choices=[{"text": "a"}], usage={"completion_tokens": 2}),
            2,
        ),
        (
            event(type="content_block_delta", delta={"text": "a"}) * 3
            + event(type="message_delta", usage={"output_tokens": 8}),
            8,
        ),
        (b'{"response":"a","done":false}\n' * 3 + b'{"response":"","done":true,"eval_count":4}\n', 4),
        (event(token={"text": "a"}) * 2 + event(token={"text": "b"}, details={"generated_tokens": 3}), 3),
        (b"<html>not json</html>", 0),
    ],
)
def test_answers_are_counted_however_they_are_cut(answer, tokens):
    for size in (1, 7, len(answer)):
        reader = AnswerTokens()
        counted = sum(reader.read(answer[start : start + size]) for start in range(0, len(answer), size))
        assert counted + reader.finish() == tokens
