"""Fair scheduling inside vLLM, measured against vLLM's own order: first tokens, throughput, shares, cost of a step.

    ENV/bin/python benchmarks/recipes/vllm_fairness.py latency --json benchmarks/results/vllm_latency--MACHINE.json
    ENV/bin/python benchmarks/recipes/vllm_fairness.py shares  --json benchmarks/results/vllm_shares--MACHINE.json
    ENV/bin/python benchmarks/recipes/vllm_fairness.py cost    --json benchmarks/results/vllm_cost--MACHINE.json

ENV is the environment that ``make test-vllm`` builds. ``latency``: one ``vllm serve``, whose order is switched from
round to round, A B C A B C (tests/vllm/switching_scheduler.py); one client sends 64 requests (64 + 32 tokens) to 16
slots, a second later another sends three short ones, one after the other. ``shares``: three clients of weights 1, 2
and 4 that always have requests waiting. ``cost``: vLLM's scheduler alone, outputs made up, 1,000 requests waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "vllm"))

from environment import Environment  # type: ignore[attr-defined]  # noqa: E402  # of tests/vllm, not of tests/clients

from evenflow.access.keys import hash_key  # noqa: E402
from evenflow.bench.harness import write_result  # noqa: E402

QUEUED, PROMPT_TOKENS, OUTPUT_TOKENS = 64, 64, 32
SLOTS = 16
WEIGHTS = {"one": 1.0, "two": 2.0, "four": 4.0}
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class Server:
    """One ``vllm serve`` with a scheduler of EvenFlow's, on this machine. ``variables`` are set in its environment."""

    def __init__(self, scheduler: str, folder: Path, variables: Mapping[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(Environment().model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "base", "--max-num-seqs", str(SLOTS)]
        command += ["--max-model-len", "1024", "--disable-uvicorn-access-log", "--scheduler-cls", scheduler]
        command += ["--middleware", "evenflow.integrations.vllm.ClientIdentity"]
        given = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT / "tests" / "vllm"), **variables}
        self.log = (folder / f"server-{port}.log").open("w")
        self.process = subprocess.Popen(command, env=given, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is not left behind

    def wait(self, timeout_s: float = 400.0) -> None:
        """Until it answers. Raises RuntimeError with the end of its log if it does not."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(self.url + "/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(1.0)
        raise RuntimeError(f"vLLM did not come up:\n{Path(self.log.name).read_text()[-3000:]}")

    def close(self) -> None:
        """Ask it to end, and its children with it."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


def prompt(seed: int, length: int = PROMPT_TOKENS) -> list[int]:
    """Token ids that no other prompt shares its beginning with."""
    return [100 + (seed * 7919 + place * 104729) % 40000 for place in range(length)]


async def ask(
    http: httpx.AsyncClient, url: str, client: str, seed: int, output: int, key: str | None = None
) -> tuple[float, float]:
    """Seconds to the first token and to the end."""
    start, first = time.perf_counter(), None
    body = {"model": "base", "prompt": prompt(seed), "max_tokens": output, "temperature": 0, "ignore_eos": True, "stream": True}
    headers = {"x-evenflow-client": client} if key is None else {"authorization": f"Bearer {key}"}
    async with http.stream("POST", url + "/v1/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if first is None and line.startswith("data:"):
                first = time.perf_counter() - start
    assert first is not None
    return first, time.perf_counter() - start


async def flood(url: str, first_seed: int) -> dict[str, Any]:
    """One round: what a quiet client waits idle and beside a flood, and how long everything takes."""
    async with httpx.AsyncClient(timeout=900, limits=httpx.Limits(max_connections=200)) as http:
        idle = [(await ask(http, url, "quiet", first_seed + 900 + i, 8))[0] for i in range(3)]
        start = time.perf_counter()
        sent = [asyncio.create_task(ask(http, url, "greedy", first_seed + i, OUTPUT_TOKENS)) for i in range(QUEUED)]
        await asyncio.sleep(1.0)
        quiet = [(await ask(http, url, "quiet", first_seed + 500 + i, 8))[0] for i in range(3)]
        await asyncio.gather(*sent)
        took = time.perf_counter() - start
    tokens = QUEUED * OUTPUT_TOKENS + len(quiet) * 8
    return {
        "idle_first_token_s": idle,
        "quiet_first_token_s": quiet,
        "took_s": took,
        "output_tokens_per_s": tokens / took,
    }


def measure_latency(repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A B C A B C: vLLM's own order, plain VTC, the default."""
    from evenflow.fairness.registry import DEFAULT_POLICY

    orders = ("vllm", "vtc", DEFAULT_POLICY)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in orders}
    with tempfile.TemporaryDirectory() as folder:
        switch = Path(folder) / "order"
        switch.write_text("vllm")
        server = Server("switching_scheduler.SwitchingScheduler", Path(folder), {"EVENFLOW_SWITCH": str(switch)})
        try:
            server.wait()
            asyncio.run(warm_up(server.url, 1_000_000))
            for repeat in range(repeats):
                for number, name in enumerate(orders):
                    switch.write_text(name)
                    rounds[name].append(asyncio.run(flood(server.url, 10_000 * (repeat + 1) + 2_000 * number)))
                    print(name, rounds[name][-1], flush=True)
        finally:
            server.close()
    median = statistics.median
    first = {name: [r["quiet_first_token_s"][0] for r in rows] for name, rows in rounds.items()}
    idle = {name: median(t for r in rows for t in r["idle_first_token_s"]) for name, rows in rounds.items()}
    speed = {name: [r["output_tokens_per_s"] for r in rows] for name, rows in rounds.items()}
    results: dict[str, Any] = {"rounds": rounds}
    for name in orders:
        results[name] = {
            "idle_first_token_s": round(idle[name], 3),
            "quiet_first_token_s": round(median(first[name]), 3),
            "quiet_all_first_tokens_s": [round(t, 3) for r in rounds[name] for t in r["quiet_first_token_s"]],
            "sooner_than_vllm": round(median(a / b for a, b in zip(first["vllm"], first[name], strict=True)), 2),
            "throughput_to_vllm": round(median(b / a for a, b in zip(speed["vllm"], speed[name], strict=True)), 3),
        }
        print(name, results[name])
    return {"queued": QUEUED, "prompt": PROMPT_TOKENS, "output": OUTPUT_TOKENS, "slots": SLOTS, "repeats": repeats}, results


async def warm_up(url: str, seed: int) -> None:
    """Every slot once."""
    async with httpx.AsyncClient(timeout=900) as http:
        await asyncio.gather(*(ask(http, url, "warm", seed + i, 8) for i in range(SLOTS)))


def service(url: str) -> dict[str, float]:
    """Service by client, as vLLM's own /metrics says."""
    found = {}
    for line in httpx.get(url + "/metrics", timeout=30).text.splitlines():
        if line.startswith("evenflow_client_service_total{"):
            labels, value = line.rsplit(" ", 1)
            found[labels.split('client="')[1].split('"')[0]] = float(value)
    return found


async def keep_busy(url: str, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """Every client has 12 requests under way all the time. Returns service at the start and at the end."""
    seeds = iter(range(1_000_000, 9_000_000))
    async with httpx.AsyncClient(timeout=900, limits=httpx.Limits(max_connections=200)) as http:

        async def go_on(client: str) -> None:
            while True:
                await ask(http, url, client, next(seeds), 32, key=f"key-{client}")

        tasks = [asyncio.create_task(go_on(client)) for client in WEIGHTS for _ in range(SLOTS + 4)]
        await asyncio.sleep(10.0)
        before = await asyncio.to_thread(service, url)
        await asyncio.sleep(seconds)
        after = await asyncio.to_thread(service, url)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return before, after


def measure_shares(policy: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shares of service beside shares of weight."""
    with tempfile.TemporaryDirectory() as folder:
        clients = Path(folder) / "clients.toml"
        entries = [f'[clients.{n}]\nweight = {w}\napi_keys = ["{hash_key(f"key-{n}")}"]\n' for n, w in WEIGHTS.items()]
        clients.write_text("".join(entries))
        assert tomllib.loads(clients.read_text())
        variables = {"EVENFLOW_CLIENTS": str(clients), "EVENFLOW_POLICY": policy}
        server = Server("evenflow.integrations.vllm.FairScheduler", Path(folder), variables)
        try:
            server.wait()
            before, after = asyncio.run(keep_busy(server.url, seconds))
        finally:
            server.close()
    received = {name: after[name] - before[name] for name in WEIGHTS}
    shares = {name: round(value / sum(received.values()), 4) for name, value in received.items()}
    due = {name: round(weight / sum(WEIGHTS.values()), 4) for name, weight in WEIGHTS.items()}
    print("shares", shares, "due", due)
    worst = round(max(abs(shares[name] - due[name]) for name in WEIGHTS), 4)
    return {"policy": policy, "seconds": seconds, "weights": WEIGHTS}, {
        "received": received,
        "shares": shares,
        "due": due,
        "largest_difference": worst,
    }


def measure_cost(num_waiting: int, repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Processor time of a step of vLLM's scheduler, planning and taking its output, with and without ours. No model."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from real_scheduler import RealDriver

    from evenflow.fairness.registry import DEFAULT_POLICY

    orders: dict[str, str | None] = {"vllm": None, "vtc": "vtc", DEFAULT_POLICY: DEFAULT_POLICY}
    samples: dict[str, dict[str, list[float]]] = {}
    for num_running in (16, 64):
        for clients in (1, 10, 1000):
            key = f"{num_running} running, {clients} clients"
            samples[key] = {name: [] for name in orders}
            for _ in range(repeats):
                for name, policy in orders.items():
                    driver = RealDriver(policy, num_blocks=20_000, max_num_seqs=num_running, budget=2048, is_checked=False)
                    samples[key][name].append(_step_cost(driver, num_waiting, num_running, clients))
    results = {
        key: {
            **{name: round(1000 * statistics.median(values), 4) for name, values in by_name.items()},
            **{
                f"{name} - vllm": round(
                    1000 * statistics.median(b - a for a, b in zip(by_name["vllm"], values, strict=True)), 4
                )
                for name, values in by_name.items()
                if name != "vllm"
            },
        }
        for key, by_name in samples.items()
    }
    print(json.dumps(results, indent=1))
    return {"waiting": num_waiting, "repeats": repeats, "unit": "ms of processor time per step"}, {
        **results,
        "samples_s": samples,
    }


def _step_cost(driver: Any, num_waiting: int, num_running: int, clients: int) -> float:
    """Seconds of processor time per step: requests of 40 to 87 tokens end in turn, and others take their places."""
    for i in range(num_waiting + num_running):
        driver.add(f"c{i % clients}", 16, 40 + i % 48)
    for _ in range(20):
        driver.step()
    steps, start = 200, time.process_time()
    for i in range(steps):
        driver.step()
        if i * num_running // 64 != (i + 1) * num_running // 64:  # as many come as end
            driver.add(f"c{i % clients}", 16, 64)
    return (time.process_time() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("latency", "shares", "cost"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--policy", default="vtc")
    args = parser.parse_args()
    if args.part == "latency":
        parameters, results = measure_latency(args.repeats)
    elif args.part == "shares":
        parameters, results = measure_shares(args.policy, args.seconds)
    else:
        parameters, results = measure_cost(1000, args.repeats)
    write_result(args.json, f"vllm_{args.part}", parameters, results)


if __name__ == "__main__":
    main()
