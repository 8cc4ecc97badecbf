"""Nobody pays for others' options: a neighbour's latency beside every option of a request at its maximum.

    python benchmarks/recipes/option_costs.py --json benchmarks/results/option_costs--MACHINE.json

A real server on a random Llama of 135 M parameters. One client keeps asking for one completion set (12 choices) with an
option at its documented maximum, or sends large bodies twice a second; a neighbour asks for four tokens, again and
again. Beside each case the same load runs without it, in turn (A B A B); the figure is the ratio of the
neighbour's 99th percentiles. The callers are processes of their own, so that their work does not count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx
import numpy as np

PLAIN: dict[str, Any] = {
    "prompt": [7] * 64,
    "n": 12,
    "max_tokens": 1500,
    "ignore_eos": True,
    "temperature": 0.7,
    "stream": True,
}
NEIGHBOUR = {"prompt": list(range(10, 26)), "max_tokens": 4, "ignore_eos": True, "temperature": 0}
BIAS = {str(i): 0.01 for i in range(1024)}
STOPS = ["x" * 255 + chr(97 + i) for i in range(16)]
PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1}
LONG = [7 + i % 400 for i in range(400)]
OPTIONS: dict[str, dict[str, Any]] = {
    "logit_bias": {"logit_bias": BIAS},
    "penalties": {**PENALTIES, "prompt": LONG, "max_tokens": 1500},
    "stop": {"stop": STOPS},
    "stop_token_ids": {"stop_token_ids": list(range(1000, 2024)), "min_tokens": 1400},
    "logprobs": {"logprobs": 20},
    "draws": {"top_k": 500, "top_p": 0.9, "min_p": 0.01, "seed": 1},
    "everything": {
        "logit_bias": BIAS,
        **PENALTIES,
        "stop": STOPS,
        "stop_token_ids": list(range(1000, 2024)),
        "min_tokens": 1400,
        "logprobs": 20,
        "top_k": 500,
        "top_p": 0.9,
        "min_p": 0.01,
        "seed": 1,
    },
}
"""Each beside PLAIN; ``penalties`` beside PLAIN with the same prompt."""
BODIES: dict[str, tuple[str, bytes]] = {
    "unknown fields, 23 MiB": (
        "/v1/completions",
        b'{"prompt":"x"' + b"".join(b',"k%07d":"y"' % i for i in range(1_400_000)) + b"}",
    ),
    "7 M empty prompts": ("/v1/completions", b'{"prompt":[' + b'"",' * 6_999_999 + b'""]}'),
    "as many values as are read": ("/v1/completions", b'{"max_tokens":1,"prompt":[' + b"7," * 262_000 + b"7]}"),
    "a text of 30 MiB": ("/v1/completions", b'{"max_tokens":1,"prompt":"' + b"a, b" * (30 << 18) + b'"}'),
    "detokenize as many ids as may be": ("/detokenize", b'{"tokens":[' + b"7," * 131_000 + b"7]}"),
    "2 M stop_token_ids, n=128": (
        "/v1/completions",
        b'{"prompt":"x","n":128,"stop_token_ids":[' + b"7," * 1_999_999 + b"7]}",
    ),
    "a stop string of 2 MiB, 1,024 completions": (
        "/v1/completions",
        json.dumps({"prompt": ["x"] * 8, "n": 128, "stop": "y" * (2 << 20)}).encode(),
    ),
}
"""Path and body, sent twice a second beside PLAIN: the cost of each is shown, not that of a flood."""
VOCAB_SIZE = 32_000
SETTLE_S = 1.0
"""After the first token of every choice: prompts are computed, and what is measured is the cost of a step."""
HEADERS = {"content-type": "application/json", "x-evenflow-client": "greedy"}


def ask_on(url: str, body: dict[str, Any], has_begun: Event, stop: Event) -> None:
    """Keep one request with ``body`` running until told to stop; it has begun when every choice has said something."""
    with httpx.Client(base_url=url, timeout=120) as client:
        while not stop.is_set():
            with client.stream("POST", "/v1/completions", json=body, headers=HEADERS) as answer:
                assert answer.status_code == 200, answer.read()
                choices: set[int] = set()
                for line in answer.iter_lines():
                    if len(choices) < body["n"] and line.startswith("data: {"):
                        choices.add(json.loads(line[6:])["choices"][0]["index"])
                        if len(choices) == body["n"]:
                            has_begun.set()
                    if stop.is_set():
                        return


def send_on(url: str, path: str, body: bytes, has_begun: Event, stop: Event) -> None:
    """Send ``body`` twice a second until told to stop."""
    with httpx.Client(base_url=url, timeout=120) as client:
        while not stop.is_set():
            client.post(path, content=body, headers=HEADERS)
            has_begun.set()
            stop.wait(0.5)


class Bench:
    """One server, and the neighbour's measurements."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._spawn = multiprocessing.get_context("spawn")
        self._client = httpx.Client(base_url=url, timeout=120, headers={"x-evenflow-client": "neighbour"})

    def latencies_s(self, *callers: tuple[Any, ...]) -> list[float]:
        """The neighbour's, while every caller (a function and its arguments) runs in a process of its own."""
        stop = self._spawn.Event()
        begun = [self._spawn.Event() for _ in callers]
        processes = [
            self._spawn.Process(target=call, args=(self._url, *arguments, has_begun, stop))
            for (call, *arguments), has_begun in zip(callers, begun, strict=True)
        ]
        for process in processes:
            process.start()
        for has_begun in begun:
            assert has_begun.wait(60), "a caller has not begun"
        time.sleep(SETTLE_S)
        found: list[float] = []
        end_s = time.monotonic() + self._seconds
        while time.monotonic() < end_s:
            started_s = time.monotonic()
            answer = self._client.post("/v1/completions", json=NEIGHBOUR)
            found.append(time.monotonic() - started_s)
            assert answer.status_code == 200, answer.text
        stop.set()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0, "a caller failed"
        return found


def compared(bench: Bench, base: list[tuple[Any, ...]], case: list[tuple[Any, ...]], rounds: int) -> dict[str, Any]:
    """The neighbour's latencies beside ``base`` and beside ``case``, in turn."""
    without: list[float] = []
    beside: list[float] = []
    for _ in range(rounds):
        without += bench.latencies_s(*base)
        beside += bench.latencies_s(*case)

    def told(samples: list[float]) -> dict[str, Any]:
        p50, p99 = np.percentile(samples, [50, 99])
        return {
            "n": len(samples),
            "p50_s": round(float(p50), 4),
            "p99_s": round(float(p99), 4),
            "samples": [round(s, 4) for s in samples],
        }

    row = {"without": told(without), "beside": told(beside)}
    row["p99 ratio"] = round(float(row["beside"]["p99_s"] / row["without"]["p99_s"]), 2)
    row["p50 ratio"] = round(float(row["beside"]["p50_s"] / row["without"]["p50_s"]), 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of cases")
    args = parser.parse_args()
    import torch  # here, so that the callers' processes start without it

    from evenflow.bench.harness import write_result
    from evenflow.serving.models.random.random_model import LLAMA_135M, make_model

    results: dict[str, Any] = {"unit": "seconds of the neighbour's requests"}
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        model = Path(folder) / "model"
        make_model(model, LLAMA_135M, dtype=torch.bfloat16, vocab_size=VOCAB_SIZE)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, "-m", "evenflow.cli.main", "--log-level", "error", "serve", str(model), "--port", str(port)]
        server = subprocess.Popen([*command, "--memory", "1GiB", "--no-enable-prefix-caching"], env=dict(os.environ))
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                assert server.poll() is None, "the server has ended"
                try:
                    if httpx.get(f"{url}/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            bench = Bench(url, args.seconds)
            bench.latencies_s((ask_on, PLAIN))  # warms every path
            for name, fields in OPTIONS.items():
                if not args.only or name in args.only:
                    same: dict[str, Any] = {key: fields[key] for key in ("prompt", "max_tokens") if key in fields}
                    base, case = [(ask_on, {**PLAIN, **same})], [(ask_on, {**PLAIN, **fields})]
                    results[name] = compared(bench, base, case, args.rounds)
                    print(name, {key: value for key, value in results[name].items() if "ratio" in key}, flush=True)
            for name, (path, body) in BODIES.items():
                if not args.only or name in args.only:
                    load = (ask_on, PLAIN)
                    results[name] = compared(bench, [load], [load, (send_on, path, body)], args.rounds)
                    print(name, {key: value for key, value in results[name].items() if "ratio" in key}, flush=True)
        finally:
            server.terminate()
            server.wait(60)
    parameters = {
        "model": f"random Llama, 135 M, bf16, vocabulary of {VOCAB_SIZE}",
        "choices": PLAIN["n"],
        "seconds": args.seconds,
        "rounds": args.rounds,
    }
    write_result(args.json, "option_costs", parameters, results)


if __name__ == "__main__":
    main()
