"""An engine, a tokenizer and a template that cost nothing: one token is one byte, the answer is known beforehand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from evenflow.base.errors import AdapterExists, AdapterNotFound, AdapterRejected, EngineDead, EvenFlowError, InvalidRequest
from evenflow.serving.client.messages import (
    AdapterInfo,
    AdapterStats,
    ClientStats,
    EngineStats,
    Logprobs,
    Ready,
    RequestOutput,
    Submit,
    SubmitAll,
    Usage,
)
from evenflow.serving.server.http.bounded_connection import bounded_protocol
from evenflow.serving.server.run import connection_limits

VOCAB_SIZE = 258
BOS, EOS = 256, 257


class FakeTokenizer:
    """UTF-8 bytes, with a BOS if special tokens are asked for."""

    config = {"tokenizer_class": "FakeTokenizer", "bos_token": "<bos>"}

    def special_token_id(self, text: str) -> int | None:
        return {"<bos>": BOS, "<eos>": EOS}.get(text)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return ([BOS] if add_special_tokens else []) + list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        names = {BOS: "<bos>", EOS: "<eos>"}
        text = b""
        for token in token_ids:
            if token < 256:
                text += bytes([token])
            elif not skip_special_tokens:
                text += names[token].encode()
        return text.decode("utf-8", "replace")


class FakeTemplate:
    """<role>content ... and <assistant> at the end."""

    source = "{{ tools }} <tool_call>"

    def knows_role(self, role: str) -> bool:
        return role in ("user", "narrator")

    def reads(self, variable: str) -> bool:
        return variable in ("tools", "documents")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        if messages[0]["role"] == "assistant":
            raise InvalidRequest("a conversation starts with the user", "messages")
        contents = [c if isinstance(c, str) else "\n".join(p["text"] for p in c) for c in (m["content"] for m in messages)]
        text = "".join(f"<{message['role']}>{content}" for message, content in zip(messages, contents))
        text += "".join(f"<{key}={value}>" for key, value in variables.items())
        return text + ("<assistant>" if add_generation_prompt else "")


class FakeEngine:
    """Answers "[adapter] prompt" one byte per step; ``gate`` holds every request back until it is set."""

    def __init__(self, max_model_len: int = 256, is_warm: bool = True) -> None:
        self.max_model_len = max_model_len
        self.gate = asyncio.Event()
        self.gate.set()
        self.warm = asyncio.Event()
        if is_warm:
            self.warm.set()
        self.dead = asyncio.Event()
        self.death: EvenFlowError | None = None
        self.step_s = 0.0
        self.submitted: list[Submit] = []
        self.aborted: list[str] = []
        self.running: set[str] = set()
        self.weights: dict[str, float] = {}
        self.infos: dict[str, AdapterInfo] = {}
        self.num_loads = 0
        self.combined: list[list[tuple[str, float]]] = []
        self.purged: list[str] = []
        self.on_aborted: Callable[[str, Usage], object] = lambda request_id, usage: None
        self.fail_with: RequestOutput | None = None
        """Sent instead of token number ``fail_at``."""
        self.fail_at = 0
        self.stats_now = EngineStats(policy="vtc", num_pages=100, num_free_pages=60, num_kv_pages=30, num_adapter_pages=10)

    @property
    def is_alive(self) -> bool:
        return not self.dead.is_set()

    @property
    def trouble(self) -> str | None:
        return None if self.is_alive else str(self.death or "the engine is dead")

    @property
    def is_ready(self) -> bool:
        return self.is_alive and self.warm.is_set()

    @property
    def info(self) -> Ready:
        assert self.is_ready
        return Ready(self.max_model_len, VOCAB_SIZE, "float32", 100, 16, 4096, "vtc", [EOS])

    @property
    def stats(self) -> EngineStats:
        return self.stats_now

    async def wait_until_ready(self) -> Ready:
        await self.warm.wait()
        return self.info

    async def wait_until_dead(self) -> EvenFlowError | None:
        await self.dead.wait()
        return self.death

    def die(self) -> None:
        self.death = EngineDead("the engine process ended with signal SIGKILL")
        self.dead.set()
        self.gate.set()

    async def submit(self, submit: Submit) -> AsyncIterator[RequestOutput]:
        if not self.is_alive:
            raise self.death or EngineDead("dead")
        self.submitted.append(submit)
        self.running.add(submit.request_id)
        has_ended = False
        try:
            if submit.adapter is not None and submit.adapter not in self.infos:
                has_ended = True
                yield RequestOutput(submit.request_id, error_type="AdapterNotFound", error=f"no adapter {submit.adapter!r}")
                return
            for output in self._outputs(submit):
                await self.gate.wait()
                await asyncio.sleep(self.step_s)
                if not self.is_alive:
                    assert self.death is not None
                    raise self.death
                has_ended = output.finish_reason is not None or output.error_type is not None
                yield output
        finally:
            self.running.discard(submit.request_id)
            if not has_ended:
                self.aborted.append(submit.request_id)

    def hear_aborted(self, listener: Callable[[str, Usage], object]) -> None:
        self.on_aborted = listener

    def submit_all(self, group: SubmitAll) -> list[AsyncIterator[RequestOutput]]:
        return [self.submit(submit) for submit in group.submits()]

    def answer(self, submit: Submit) -> str:
        sampling = submit.sampling
        seed = f" seed={sampling.seed}" if sampling.seed is not None and sampling.temperature > 0 else ""
        prompt = FakeTokenizer().decode(submit.prompt_token_ids)
        return f"[{submit.adapter or 'base'}] {prompt}{seed}"

    def _outputs(self, submit: Submit) -> Iterator[RequestOutput]:
        sampling = submit.sampling
        text = self.answer(submit)
        stop_reason: str | None = None
        for stop in sampling.stop:
            if stop in text:
                text, stop_reason = text[: text.index(stop)], stop
        most = sampling.max_tokens if sampling.max_tokens is not None else self.max_model_len - len(submit.prompt_token_ids)
        is_cut = len(text) > most
        text = text[:most]
        for i, character in enumerate(text or " "):
            if self.fail_with is not None and i == self.fail_at:
                yield RequestOutput(
                    submit.request_id,
                    error_type=self.fail_with.error_type,
                    error=self.fail_with.error,
                    param=self.fail_with.param,
                    retry_after_s=self.fail_with.retry_after_s,
                    predicted_ttft_s=self.fail_with.predicted_ttft_s,
                )
                return
            output = RequestOutput(submit.request_id, character, [ord(character) & 0xFF])
            if sampling.logprobs is not None:
                output.logprobs = [_logprobs(ord(character) & 0xFF, sampling.logprobs)]
            if i == 0 and sampling.prompt_logprobs is not None:
                rest = submit.prompt_token_ids[1:]
                output.prompt_logprobs = [None, *(_logprobs(token, sampling.prompt_logprobs) for token in rest)]
            if i == len(text or " ") - 1:
                output.finish_reason = "length" if is_cut else "stop"
                output.stop_reason = stop_reason
                output.usage = Usage(len(submit.prompt_token_ids), len(text or " "), 0, 0, 0.25, 0.5, 1.0)
            elif i == 0:
                output.usage = Usage(len(submit.prompt_token_ids), 1, 0, 0, 0.25, 0.5)
            yield output

    async def load_adapter(
        self,
        name: str,
        path: str,
        replace: bool = False,
        *,
        must_read: bool = False,
        boundary: str = "",
        client_id: str = "",
    ) -> list[AdapterInfo]:
        await asyncio.sleep(0)
        self.num_loads += 1
        folder = Path(path)
        if not (folder / "adapter_config.json").is_file():
            raise AdapterNotFound(f"no adapter at {path}")
        content = (folder / "adapter_config.json").read_bytes()
        if b"bad" in content:
            raise AdapterRejected(path, ["use_dora is true; not supported", "rank 9000"])
        if name in self.infos and not replace:
            raise AdapterExists(f"{name} is taken")
        digest = hashlib.sha256(content).hexdigest()
        self.infos[name] = AdapterInfo(name, digest, 8, 4096, 1, "host", False, 0, ["q_proj"])
        return [self.infos[name]]

    async def combine_adapters(self, name: str, parts: Sequence[tuple[str, float]]) -> list[AdapterInfo]:
        await asyncio.sleep(0)
        self.combined.append(list(parts))
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        self.infos[name] = AdapterInfo(name, digest, 16, 8192, 2, "host", False, 0, ["q_proj"])
        return [self.infos[name]]

    async def unload_adapter(self, name: str, purge: bool = False) -> list[AdapterInfo]:
        if name not in self.infos:
            raise AdapterNotFound(f"no adapter {name!r}")
        del self.infos[name]
        self.purged += [name] * purge
        return []

    async def pin_adapter(self, name: str, is_pinned: bool) -> list[AdapterInfo]:
        if name not in self.infos:
            raise AdapterNotFound(f"no adapter {name!r}")
        self.infos[name].is_pinned = is_pinned
        return [self.infos[name]]

    async def list_adapters(self) -> list[AdapterInfo]:
        return list(self.infos.values())

    async def set_weights(
        self, weight_by_client: Mapping[str, float], tier_by_client: Mapping[str, str], weight_by_tier: Mapping[str, float]
    ) -> None:
        self.weights = dict(weight_by_client)
        self.tiers = (dict(tier_by_client), dict(weight_by_tier))

    async def close(self) -> None:
        self.dead.set()


def _logprobs(token: int, num_top: int) -> Logprobs:
    text = FakeTokenizer().decode([token], skip_special_tokens=False)
    top = [((token + i) % 256, chr((token + i) % 128), -0.5 - i) for i in range(num_top)]
    return Logprobs(token, -0.5, text, top)


def busy_stats() -> EngineStats:
    """A snapshot in which every figure is different."""
    return EngineStats(
        time_s=12.5,
        policy="vtc",
        num_running=2,
        num_waiting=3,
        num_pages=100,
        num_free_pages=50,
        num_kv_pages=30,
        num_adapter_pages=20,
        num_preemptions=4,
        prompt_tokens=1000,
        completion_tokens=500,
        recomputed_tokens=7,
        num_steps=60,
        step_s=0.01,
        scheduling_s=0.1,
        executing_s=5.0,
        tokens_per_s=100.0,
        num_adapters=5,
        num_resident_adapters=2,
        num_adapter_loads=9,
        num_adapter_evictions=6,
        num_host_adapters=1,
        num_pinned_adapters=1,
        adapter_bytes=5_000,
        host_adapter_bytes=3_000,
        num_adapter_prefetches=8,
        num_wasted_prefetches=3,
        loaded_adapter_bytes=9_000,
        num_failed_adapter_loads=2,
        running_adapters=["a", "b"],
        waiting_adapters=["b", "c"],
        clients={
            "alice": ClientStats(1, 1, 600, 300, 1200.0, 17.0, 2.0),
            "bob": ClientStats(2, 1, 400, 200, 800.0, None, 1.0),
        },
        adapters={
            "d1": AdapterStats("a", 0, 1, 10, 20, 3, True),
            "d2": AdapterStats("a", 0, 0, 1, 2, 1, False),
            "d3": AdapterStats("c", 1, 0, 0, 0, 0, False),
        },
    )


def make_adapter(folder: Path, name: str, content: str = "{}") -> Path:
    """A folder that the fake engine takes for an adapter."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(content + " " * (hash(name) % 7))
    return path


@contextlib.asynccontextmanager
async def in_process(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the open app directly, without a socket."""
    async with app.router.lifespan_context(app):
        if app.state.server.engine.is_ready:
            while not app.state.server.is_open and app.state.server.failure is None:
                await asyncio.sleep(0)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
            yield client


class LiveServer:
    """The app on a real socket of 127.0.0.1, in a thread with an event loop of its own."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.state = app.state.server
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        protocol = bounded_protocol(connection_limits(self.state.config), self.state.connections)
        self._server = uvicorn.Server(
            uvicorn.Config(app, http=protocol, ws="none", log_config=None, timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._socket])

    def call(self, function: Any, *arguments: Any) -> None:
        """Call something inside the server's loop."""
        self.loop.call_soon_threadsafe(function, *arguments)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        self.wait_for(lambda: self.state.is_open and self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    @staticmethod
    def wait_for(condition: Any, timeout_s: float = 10.0) -> None:
        """Poll from outside the server's loop until ``condition()`` holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.005)
