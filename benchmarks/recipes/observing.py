"""What it costs to be looked at: throughput with the console open and accounts on, and the console's share of a core.

    python benchmarks/recipes/observing.py --json benchmarks/results/observing--MACHINE.json

Three servers of the embedded model, whose steps are so short that the HTTP server's work shows: plain (no console, no
accounts), seen (ten pages of the console open, accounts in SQLite) and told (seen, and a line of JSON for each request). They
live side by side and are asked in turn: A B C A B C. A sample is a fixed number of completions of a few clients, of 32 tokens
each, and beside its time the processor time of server and engine is taken. Then the seen server idles with no page and with
ten pages open, in turn: the difference in processor time of the HTTP server's process is what the collector and its streams
take. ``--model``: another model's folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from evenflow.bench.harness import interleave, paired_ratio, summary, write_result

PAGES, CLIENTS, AT_ONCE, COMPLETIONS, TOKENS = 10, 40, 16, 128, 32
IDLE_S = 5.0


class Server:
    """``evenflow serve`` on a free port, with these further words."""

    def __init__(self, folder: Path, model: Path | None, *words: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        served = ["--demo"] if model is None else [str(model)]
        command = [sys.executable, "-m", "evenflow", "serve", *served, "--port", str(port), "--memory", "256MiB"]
        self.processor_ms: list[float] = []
        """Of server and engine for a completion, of each sample: what a busy machine disturbs less than the time it takes."""
        with (folder / f"{port}.log").open("wb") as log:
            self.process = subprocess.Popen([*command, *words], stderr=log)
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(self.url + "/ready").status_code == 200:
                    return
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.2)

    def completions_per_s(self) -> float:
        """Ask for all completions; how many come in a second."""
        before = self.processor_s()
        found = asyncio.run(self._asked())
        self.processor_ms.append(1e3 * (self.processor_s() - before) / COMPLETIONS)
        return found

    def processor_s(self) -> float:
        """Processor time of the server and its engine so far."""
        process = psutil.Process(self.process.pid)
        return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))

    async def _asked(self) -> float:
        numbers = iter(range(COMPLETIONS))
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:

            async def ask() -> None:
                for number in numbers:
                    body = {"model": "base", "prompt": f"Number {number} of", "max_tokens": TOKENS, "ignore_eos": True}
                    answer = await http.post("/v1/completions", json={**body, "user": f"client {number % CLIENTS}"})
                    answer.raise_for_status()

            started_s = time.perf_counter()
            await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
            return COMPLETIONS / (time.perf_counter() - started_s)

    def share_of_core(self) -> float:
        """Processor time of the HTTP server's process over the time that passes, while nobody asks anything."""
        process = psutil.Process(self.process.pid)
        before = sum(process.cpu_times()[:2])
        started_s = time.perf_counter()
        time.sleep(IDLE_S)
        return (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - started_s)

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """Ten pages of the console are open, each in curl."""
        words = ["curl", "--silent", "--no-buffer", "--output", "/dev/null", f"{self.url}/console/events"]
        pages = [subprocess.Popen(words) for _ in range(PAGES)]
        time.sleep(0.5)
        try:
            assert all(page.poll() is None for page in pages), "a page has closed"
            yield
        finally:
            for page in pages:
                page.terminate()
                page.wait()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--model", type=Path, help="folder; default: the embedded model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        accounts = ("--accounts", str(folder / "usage.sqlite"))
        servers = {
            "plain": Server(folder, args.model, "--no-console"),
            "seen": Server(folder, args.model, *accounts),
            "told": Server(folder, args.model, *accounts, "--log-format", "json"),
        }

        def looked_at(server: Server) -> float:
            with server.looked_at():
                return server.completions_per_s()

        try:
            samples = interleave(
                {
                    "plain": servers["plain"].completions_per_s,
                    "seen": lambda: looked_at(servers["seen"]),
                    "told": lambda: looked_at(servers["told"]),
                },
                args.repeats,
            )

            def idle_with_pages() -> float:
                with servers["seen"].looked_at():
                    return servers["seen"].share_of_core()

            processor_ms = {name: server.processor_ms[-args.repeats :] for name, server in servers.items()}
            idle = interleave({"no page": servers["seen"].share_of_core, "ten pages": idle_with_pages}, 3, warm_up=0)
        finally:
            for server in servers.values():
                server.close()
    results = {
        "completions per second": {name: {**summary(values), "samples": values} for name, values in samples.items()},
        "ratio to plain": {name: paired_ratio(samples[name], samples["plain"]) for name in ("seen", "told")},
        "processor ms of a completion": {name: {**summary(v), "samples": v} for name, v in processor_ms.items()},
        "ratio of processor ms to plain": {
            name: paired_ratio(processor_ms[name], processor_ms["plain"]) for name in ("seen", "told")
        },
        "share of a core": {name: {"median": statistics.median(values), "samples": values} for name, values in idle.items()},
        "share of a core, ten pages": statistics.median(idle["ten pages"]) - statistics.median(idle["no page"]),
    }
    parameters = {
        "model": "embedded" if args.model is None else args.model.name,
        "pages": PAGES,
        "clients": CLIENTS,
        "at_once": AT_ONCE,
        "completions": COMPLETIONS,
        "tokens": TOKENS,
        "idle_s": IDLE_S,
    }
    write_result(args.json, "observing", parameters, results)
    print(results["ratio to plain"], results["ratio of processor ms to plain"], results["share of a core, ten pages"])


if __name__ == "__main__":
    main()
