"""How long a quiet client waits for its first token, under each policy, on a virtual clock and in a live server.

    python benchmarks/recipes/quiet_client.py --json benchmarks/results/quiet_client--MACHINE.json

Sixteen slots. ``flood``: one client queues 128 requests of 1,000 tokens; another sends requests of one token, one after
another. ``crowd``: beside the same flood a hundred clients come and go, each with a request of 20 to 100 tokens and then
up to twenty seconds of silence; the quiet client sends one request a second or, if that comes later, when the last is answered.
``thinking``, on the virtual clock only: the flood, and the quiet client takes 30 ms between an answer and its next request.
Measured over a window in which the flood lasts: times to first token of the quiet client's requests, and the tokens
computed for everybody. Live: the embedded demo model behind its HTTP server, policies in turn A B A B, both under the
same load. Virtual: the shipped scheduler with steps of 20 ms + 0.2 ms per row.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from evenflow.base.errors import AdapterNotFound
from evenflow.bench.harness import write_result
from evenflow.bench.load.server_process import ServerProcess
from evenflow.demo.assets import model_path
from evenflow.fairness import ClientQueues, create_policy
from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.core.request import AdapterDigest, ClientId, FinishReason, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.simulated import LinearStepTime, SimulatedExecutor, VirtualClock
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.prefix_cache import PrefixCache
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import Scheduler, SchedulerLimits

QUEUED, LONG, PROMPT = 128, 1000, 8
CROWD, SHORTEST, LONGEST, SILENCE_S = 100, 20, 100, 20.0
SLOTS, PAGES = 16, 1200
POLICIES = ("fcfs", "vtc", "fair")
THINKING_S = 0.03
SCENARIOS = ("flood", "crowd")
VIRTUAL_SCENARIOS = (*SCENARIOS, "thinking")


def told(waits: list[float], prompt_tokens: float, completion_tokens: float, window_s: float, **more: float) -> dict[str, Any]:
    """The figures of one window."""
    p50, p99 = np.percentile(waits, [50, 99]) if waits else (None, None)
    return {
        "quiet_answered": len(waits),
        "quiet_ttft_p50_s": None if p50 is None else round(float(p50), 4),
        "quiet_ttft_p99_s": None if p99 is None else round(float(p99), 4),
        "quiet_ttft_max_s": round(max(waits), 4) if waits else None,
        "tokens_per_s": round((prompt_tokens + completion_tokens) / window_s, 1),
        "completion_tokens_per_s": round(completion_tokens / window_s, 1),
        **more,
    }


def no_adapter(digest: AdapterDigest) -> AdapterRecord:
    """Nobody asks for an adapter here."""
    raise AdapterNotFound(f"no adapter {digest}")


class VirtualRun:
    """One policy on the virtual clock. Requests of clients that wait for an answer are added as it comes."""

    def __init__(self, policy: str, scenario: str) -> None:
        queues, arena = ClientQueues(), Arena(PAGES)
        residency = Residency(arena, no_adapter)
        self._scheduler = Scheduler(
            policy=create_policy(policy, queues=queues),
            queues=queues,
            arena=arena,
            residency=residency,
            limits=SchedulerLimits(max_num_seqs=SLOTS, max_model_len=2048),
            prefix_cache=PrefixCache(arena, residency.idle_pages, 16),
        )
        self._is_crowd = scenario == "crowd"
        self._thinking_s = THINKING_S if scenario == "thinking" else 0.0
        self._random = random.Random(0)
        self._live: dict[RequestId, Request] = {}
        self._clock = VirtualClock()
        self._number = 0

    def run(self, window_s: float) -> dict[str, Any]:
        """Figures of ``window_s`` virtual seconds."""
        executor = SimulatedExecutor(LinearStepTime(0.02, 0.0002), self._clock)
        for _ in range(QUEUED):
            self._add("greedy", LONG)
        coming = [(1.0, "quiet")]
        coming += [(self._random.uniform(0, SILENCE_S), f"guest{i}") for i in range(CROWD)] if self._is_crowd else []
        waits: list[float] = []
        while self._clock.now_s < window_s:
            for item in [item for item in coming if item[0] <= self._clock.now_s]:
                coming.remove(item)
                self._add(item[1], 1 if item[1] == "quiet" else self._random.randint(SHORTEST, LONGEST))
            plan = self._scheduler.plan(self._clock.now_s)
            assert plan is not None
            result = executor.run(plan)
            lengths = {name: self._live[name].num_output_tokens + 1 for name in result.tokens}
            ended = [name for name, length in lengths.items() if length == self._live[name].known_output_tokens]
            self._scheduler.commit(result, dict.fromkeys(ended, FinishReason.LENGTH), self._clock.now_s)
            for name in ended:
                request = self._live.pop(name)
                if request.client_id == "quiet":
                    waits.append(self._clock.now_s - request.arrival_s)
                    earliest_s = request.arrival_s + 1.0 if self._is_crowd else 0.0
                    coming.append((max(self._clock.now_s + self._thinking_s, earliest_s), "quiet"))
                elif request.client_id != "greedy":
                    coming.append((self._clock.now_s + self._random.uniform(0, SILENCE_S), request.client_id))
        found = self._scheduler.snapshot()
        return told(
            waits,
            found.prompt_tokens,
            found.completion_tokens,
            self._clock.now_s,
            preemptions=found.num_preemptions,
            recomputed_tokens=found.recomputed_tokens,
        )

    def _add(self, client: str, length: int) -> None:
        self._number += 1
        request = Request(
            RequestId(str(self._number)),
            ClientId(client),
            [self._random.randrange(500) for _ in range(PROMPT)],
            GREEDY,
            self._clock.now_s,
            max_output_tokens=LONG,
            known_output_tokens=length,
        )
        self._live[request.request_id] = request
        self._scheduler.add(request, self._clock.now_s)


async def live_window(url: str, scenario: str, window_s: float, seed: int) -> dict[str, Any]:
    """Load a server that has just started, and count what it does within ``window_s`` after five seconds."""
    drawn = random.Random(seed)
    waits: list[float] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600.0, limits=limits) as http:
        name = (await http.get("/v1/models")).json()["data"][0]["id"]

        async def ask(client: str, length: int) -> float:
            prompt = [drawn.randrange(100, 1000) for _ in range(PROMPT)]
            body = {"model": name, "prompt": prompt, "max_tokens": length, "temperature": 0.0, "ignore_eos": True}
            sent_s = time.monotonic()
            reply = await http.post("/v1/completions", json=body, headers={"x-evenflow-client": client})
            reply.raise_for_status()
            return time.monotonic() - sent_s

        async def quiet(end_s: float) -> None:
            while time.monotonic() < end_s:
                waited_s = await ask("quiet", 1)
                waits.append(waited_s)
                if scenario == "crowd":
                    await asyncio.sleep(max(0.0, 1.0 - waited_s))

        async def guest(number: int) -> None:
            while True:
                await asyncio.sleep(drawn.uniform(0, SILENCE_S))
                await ask(f"guest{number}", drawn.randint(SHORTEST, LONGEST))

        async def counted() -> dict[str, float]:
            names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:num_preemptions_total")
            text = (await http.get("/metrics")).text
            lines = [line for line in text.splitlines() if line.startswith(names)]
            return {n: sum(float(line.split()[-1]) for line in lines if line.startswith(n)) for n in names}

        await ask("warm-up", 50)
        others: list[asyncio.Task[Any]] = [asyncio.create_task(ask("greedy", LONG)) for _ in range(QUEUED)]
        others += [asyncio.create_task(guest(i)) for i in range(CROWD if scenario == "crowd" else 0)]
        await asyncio.sleep(5.0)
        before, start_s = await counted(), time.monotonic()
        asking = asyncio.create_task(quiet(start_s + window_s))
        await asyncio.sleep(window_s)
        after, took_s = await counted(), time.monotonic() - start_s
        for task in others:
            if task.done():
                task.result()
        assert not all(task.done() for task in others[:QUEUED]), "the flood ended within the window"
        await asyncio.wait([asking], timeout=60.0)
        for task in (*others, asking):
            task.cancel()
        await asyncio.gather(*others, asking, return_exceptions=True)
    prompt, completion, preemptions = (after[name] - before[name] for name in before)
    return told(waits, prompt, completion, took_s, preemptions=preemptions)


def live(policy: str, scenario: str, window_s: float, seed: int) -> dict[str, Any]:
    """One fresh server under one load."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(model_path()), "--policy", policy, "--max-num-seqs", str(SLOTS), "--memory", "24MiB", "--shed", "none"]
        with ServerProcess(arguments, Path(folder) / "log") as server:
            server.wait_ready(300.0)
            return asyncio.run(live_window(server.url, scenario, window_s, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--window", type=float, default=20.0, help="seconds of a live window")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--virtual-only", action="store_true")
    args = parser.parse_args()
    results: dict[str, Any] = {"virtual": {}, "live": {}}
    for scenario in VIRTUAL_SCENARIOS:
        results["virtual"][scenario] = {policy: VirtualRun(policy, scenario).run(60.0) for policy in POLICIES}
        print("virtual", scenario, results["virtual"][scenario], file=sys.stderr, flush=True)
    for scenario in () if args.virtual_only else SCENARIOS:
        rows: dict[str, list[dict[str, Any]]] = {policy: [] for policy in ("vtc", "fair")}
        for repeat in range(args.repeats):
            for policy, row in rows.items():
                row.append(live(policy, scenario, args.window, repeat))
                print("live", scenario, policy, row[-1], file=sys.stderr, flush=True)
        throughput = {policy: sum(found["tokens_per_s"] for found in row) for policy, row in rows.items()}
        results["live"][scenario] = {**rows, "fair / vtc, tokens per second": round(throughput["fair"] / throughput["vtc"], 4)}
    parameters = {"queued": QUEUED, "output_tokens": LONG, "prompt_tokens": PROMPT, "slots": SLOTS, "crowd": CROWD}
    write_result(args.json, "quiet_client", {**parameters, "window_s": args.window}, results)


if __name__ == "__main__":
    main()
