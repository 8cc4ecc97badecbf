"""What a soaked server holds while it is soaked: memory, descriptors, threads, pages; and whether all of it was survived."""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import time
from typing import Any

import httpx
import psutil
from victim import Victim

EVERY_S = 2.0
WORDS_OF_503 = re.compile(r"^(right|429|503)$")


class Watch:
    """Samples server and engine until ``stop``."""

    def __init__(self, victim: Victim, http: httpx.AsyncClient) -> None:
        self._http = http
        self._processes = {"server": psutil.Process(victim.process.pid), "engine": victim.engine}
        self._is_over = asyncio.Event()
        self._began_s = time.monotonic()
        self.samples: list[dict[str, float]] = []

    def stop(self) -> None:
        self._is_over.set()

    async def run(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), EVERY_S)
            self.samples.append(await self._sample())

    async def _sample(self) -> dict[str, float]:
        sample = {"s": round(time.monotonic() - self._began_s, 1)}
        with contextlib.suppress(psutil.Error):
            for name, process in self._processes.items():
                sample[f"{name} MiB"] = round(process.memory_info().rss / 2**20, 1)
                sample[f"{name} descriptors"] = process.num_fds()
                sample[f"{name} threads"] = process.num_threads()
        with contextlib.suppress(httpx.HTTPError):
            text = (await self._http.get("/metrics", headers={"Authorization": "Bearer admin"})).text
            for name, pattern in (
                ("kv pages", r'^evenflow_pages\{[^}]*owner="kv"[^}]*\} (\S+)'),
                ("in flight", r"^evenflow_http_requests_in_flight(?:\{[^}]*\})? (\S+)"),
                ("waiting", r"^vllm:num_requests_waiting(?:\{[^}]*\})? (\S+)"),
            ):
                if found := re.search(pattern, text, re.MULTILINE):
                    sample[name] = float(found[1])
        return sample

    def described(self) -> dict[str, Any]:
        """By figure: the median of the first quarter, the highest of each half, and the value at the very end."""
        figures: dict[str, Any] = {}
        for name in sorted({key for sample in self.samples for key in sample} - {"s"}):
            values = [sample[name] for sample in self.samples if name in sample]
            half = max(1, len(values) // 2)
            figures[name] = {
                "early": statistics.median(values[: max(1, half // 2)]),
                "highest of the first half": max(values[:half]),
                "highest of the second half": max(values[half:] or values),
                "at the end": values[-1],
            }
        return figures


def verdict(results: dict[str, Any]) -> list[str]:
    """What was not survived, in words; empty if all was."""
    wrong = []
    for stage, told in {**results["stages"], "afterwards": results["afterwards, one by one"]}.items():
        for outcome, count in told["outcomes"].items():
            if not WORDS_OF_503.match(outcome):
                wrong.append(f"{stage}: {count} {outcome}")
    for fault, statuses in results["answers_to_faults"].items():
        wrong += [f"{fault}: {count} times {status}" for status, count in statuses.items() if re.match("5(?!03)", status)]
    if not results["is_same_engine"]:
        wrong.append("the engine is another one")
    if results["tracebacks_in_log"]:
        wrong.append(f"{results['tracebacks_in_log']} tracebacks in the log")
    if results["exit_status"]:
        wrong.append(f"exit status {results['exit_status']}")
    figures = results["resources"]
    for name, figure in figures.items():
        if name.endswith("MiB"):
            # What the first overload took is kept by the allocator; the second one may not take as much again.
            first, second = figure["highest of the first half"], figure["highest of the second half"]
            if second > 1.1 * first + 16:
                wrong.append(f"{name}: at most {first:g} in the first half, {second:g} in the second")
        elif name.endswith(("descriptors", "threads")) and figure["at the end"] > figure["early"] + 16:
            wrong.append(f"{name}: {figure['early']:g} early, {figure['at the end']:g} at the end")
    wrong += [
        f"{name} at the end: {figures[name]['at the end']:g}" if name in figures else f"{name} was never seen"
        for name in ("kv pages", "in flight", "waiting")
        if name not in figures or figures[name]["at the end"]
    ]
    return wrong
