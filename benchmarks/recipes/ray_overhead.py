"""What going through Ray costs: one plain server beside one front and one engine on Ray, own doors and Ray Serve's proxy.

    python benchmarks/recipes/ray_overhead.py --json benchmarks/results/ray_overhead--MACHINE.json

All serve the embedded model with the same options at the same time, idle but for the one that is measured, in turn. Measured
from a client: time to the first token of a streamed request, alone; and output tokens per second of sixteen streams at once.
Run it with the interpreter of an environment that has Ray (tests/on_ray/environment.py builds one).
"""

from __future__ import annotations

import argparse
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from evenflow.bench.harness import interleave, paired_ratio, summary, write_result

OPTIONS = ("--demo", "--memory", "64MiB", "--threads", "1", "--policy", "fair")
NUM_FIRST_TOKENS, STREAMS, TOKENS = 40, 16, 48
PROMPT = "The market opens at nine and the first customers ask for bread, milk and"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Served:
    """One command, until it is ready."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "evenflow.cli.main", *arguments, *OPTIONS, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self._log: list[str] = []
        threading.Thread(target=lambda: self._log.extend(iter(self.process.stdout.readline, "")), daemon=True).start()
        deadline_s = time.monotonic() + 150
        while not any(re.search(r"(^| )ready: ", line) for line in list(self._log)):
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError("".join(self._log)[-3000:])
            time.sleep(0.1)
        while self.http.get("/ready").status_code != 200:
            time.sleep(0.1)

    def stream(self, max_tokens: int) -> float:
        """Read one stream to its end; seconds to its first event."""
        body = {
            "model": "base",
            "prompt": PROMPT,
            "max_tokens": max_tokens,
            "stream": True,
            "ignore_eos": True,
            "temperature": 0,
        }
        start_s, first_s = time.perf_counter(), 0.0
        with self.http.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line and not first_s:
                    first_s = time.perf_counter() - start_s
        return first_s

    def first_token_ms(self) -> float:
        """Median of some, one after the other."""
        return 1e3 * statistics.median(self.stream(2) for _ in range(NUM_FIRST_TOKENS))

    def tokens_per_s(self) -> float:
        """Of several streams at once."""
        threads = [threading.Thread(target=self.stream, args=(TOKENS,)) for _ in range(STREAMS)]
        start_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return STREAMS * TOKENS / (time.perf_counter() - start_s)

    def close(self) -> None:
        self.http.close()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    on_ray = ("ray", "serve", "--replicas", "1", "--cpus-per-replica", "0.1")
    commands = {"plain": ("serve",), "ray": on_ray, "ray proxy": (*on_ray, "--doors", "ray")}
    servers: dict[str, Served] = {}
    try:
        for name, command in commands.items():
            servers[name] = Served(*command)
        first = interleave({name: server.first_token_ms for name, server in servers.items()}, args.repeats)
        rate = interleave({name: server.tokens_per_s for name, server in servers.items()}, args.repeats)
    finally:
        for server in servers.values():
            server.close()
    found = {
        "first_token_ms": {name: summary(samples) | {"samples": samples} for name, samples in first.items()},
        "tokens_per_s": {name: summary(samples) | {"samples": samples} for name, samples in rate.items()},
        "added_to_first_token_ms": {
            name: statistics.median(a - b for a, b in zip(first[name], first["plain"], strict=True)) for name in first
        },
        "throughput_ratio": {name: paired_ratio(rate[name], rate["plain"]) for name in rate},
    }
    print(found["added_to_first_token_ms"], found["throughput_ratio"])
    if args.json is not None:
        parameters = {"options": OPTIONS, "first_tokens": NUM_FIRST_TOKENS, "streams": STREAMS, "tokens": TOKENS}
        write_result(args.json, "ray_overhead", parameters, found)


if __name__ == "__main__":
    main()
