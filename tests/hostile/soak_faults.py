"""What strangers and bad luck do to a server while others are served: one kind of fault after the other, at random times."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil
from hostile_folders import Hostile, build, folders
from hypothesis import HealthCheck, Phase, given, settings
from victim import Victim

READING = "evenflow.serving.adapters.reading_process"
PAUSE_S = 0.3


class Faults:
    """Injects them until ``stop``, ``num_folders`` hostile ones among them.

    ``done``: how often each kind; ``statuses``: what the server answered to it.
    """

    def __init__(self, victim: Victim, root: Path, adapters: list[str], keys: list[str], seed: int, num_folders: int) -> None:
        self._victim = victim
        self._root = root
        self._adapters = adapters
        self._keys = keys
        self._rng = Random(seed + 1)
        self._good = root / "adapters" / adapters[0]
        self._folders = drawn(num_folders)
        self._is_over = asyncio.Event()
        self.done: Counter[str] = Counter()
        self.statuses: dict[str, Counter[str]] = defaultdict(Counter)

    def stop(self) -> None:
        """No more of them."""
        self._is_over.set()

    async def run(self, http: httpx.AsyncClient) -> None:
        """All kinds beside each other, each one at a time."""
        kinds: dict[str, Callable[[httpx.AsyncClient], Awaitable[object]]] = {
            "hostile folder asked for by name": self._ask_for_a_hostile_folder,
            "hostile folder loaded by an administrator": self._load_a_hostile_folder,
            "stream given up after its first events": self._abort_a_stream,
            "stream that nobody reads": self._read_slowly,
            "body larger than allowed": self._send_too_much,
            "body that never ends": self._send_slowly,
            "row file damaged": self._damage_rows,
            "process that reads adapters killed": self._kill_a_reader,
            "SIGHUP": self._reload,
        }
        await asyncio.gather(*(self._repeat(name, kind, http) for name, kind in kinds.items()))

    async def _repeat(self, name: str, kind: Callable[..., Awaitable[object]], http: httpx.AsyncClient) -> None:
        while not self._is_over.is_set():
            try:
                told = await kind(http)
            except Exception as error:  # what the server does to a stranger is written down, not raised
                told = type(error).__name__
            if told is not None:
                self.done[name] += 1
                self.statuses[name][str(told)] += 1
            await asyncio.sleep(self._rng.uniform(0, 2 * PAUSE_S))

    def _as(self, key: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {key or self._rng.choice(self._keys)}"}

    def _build(self, folder: Path) -> bool:
        """False if they are used up."""
        if not self._folders:
            return False
        build(self._folders.pop(), folder, self._good)
        return True

    async def _ask_for_a_hostile_folder(self, http: httpx.AsyncClient) -> int | None:
        name = f"hostile{self.done['hostile folder asked for by name']}"
        folder = self._root / "adapters" / name
        if not self._build(folder):
            return None
        body = {"model": name, "prompt": "x", "max_tokens": 2}
        try:
            return (await http.post("/v1/completions", json=body, headers=self._as(self._keys[-1]))).status_code
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _load_a_hostile_folder(self, http: httpx.AsyncClient) -> int | None:
        name = f"loaded{self.done['hostile folder loaded by an administrator']}"
        folder = self._root / "elsewhere" / name
        if not self._build(folder):
            return None
        body = {"lora_name": name, "lora_path": str(folder)}
        answer = await http.post("/v1/load_lora_adapter", json=body, headers=self._as("admin"))
        if answer.status_code == 200:
            await http.post("/v1/unload_lora_adapter", json={"lora_name": name}, headers=self._as("admin"))
        shutil.rmtree(folder, ignore_errors=True)
        return answer.status_code

    def _long(self) -> dict[str, Any]:
        return {"model": self._rng.choice(self._adapters), "prompt": "x", "max_tokens": 100, "ignore_eos": True, "stream": True}

    async def _abort_a_stream(self, http: httpx.AsyncClient) -> int:
        async with http.stream("POST", "/v1/completions", json=self._long(), headers=self._as()) as answer:
            async for _ in answer.aiter_lines():
                if self._rng.random() < 0.5:
                    break
            return answer.status_code

    async def _raw(self, head: str, body: bytes, wait_s: float) -> str:
        host, port = self._victim.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        try:
            lines = ["POST /v1/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json", head]
            lines.append(f"Authorization: {self._as()['Authorization']}")
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), wait_s)
            status = await asyncio.wait_for(reader.readline(), 15)
            return status.decode().split()[1] if status else "closed"
        finally:
            writer.close()

    async def _read_slowly(self, http: httpx.AsyncClient) -> str:
        body = httpx.Request("POST", "http://x", json=self._long()).content
        return await self._raw(f"Content-Length: {len(body)}", body, 5.0)

    async def _send_too_much(self, http: httpx.AsyncClient) -> str:
        return await self._raw(f"Content-Length: {1 << 40}", b'{"model": "', 0.0)

    async def _send_slowly(self, http: httpx.AsyncClient) -> str:
        return await self._raw("Content-Length: 1000", b"{", 8.0)

    async def _damage_rows(self, http: httpx.AsyncClient) -> str | None:
        files = list((self._root / "cache").glob("*/rows/*.rows"))
        if not files:
            return None
        with contextlib.suppress(OSError), self._rng.choice(files).open("r+b") as file:
            size = file.seek(0, 2)
            file.seek(self._rng.randrange(size))
            file.write(self._rng.randbytes(8))
        await asyncio.sleep(1.0)
        return "done"

    async def _kill_a_reader(self, http: httpx.AsyncClient) -> str | None:
        await asyncio.sleep(1.0)
        for process in await asyncio.to_thread(self._victim.processes):
            with contextlib.suppress(psutil.Error):
                if READING in process.cmdline():
                    process.kill()
                    return "done"
        return None

    async def _reload(self, http: httpx.AsyncClient) -> str:
        await asyncio.sleep(1.0)
        self._victim.process.send_signal(signal.SIGHUP)
        return "done"


def drawn(number: int) -> list[Hostile]:
    """So many folders of the generator, always the same."""
    found: list[Hostile] = []

    @given(hostile=folders)
    @settings(
        max_examples=number, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def keep(hostile: Hostile) -> None:
        found.append(hostile)

    keep()
    return found[::-1]
