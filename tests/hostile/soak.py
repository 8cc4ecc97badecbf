"""A server among strangers for half an hour: every answer right, nothing lost, nothing that grows.

    python tests/hostile/soak.py --minutes 30 --json benchmarks/results/soak--MACHINE.json

A real server with the embedded model; 200 clients with keys ask 1,000 adapters of its folder, at 80 % of the
capacity that was measured just before, at 150 %, and both once more, while faults are injected throughout
(``soak_faults``). Each answer is compared with that to the same request alone, and the second round may not take more
memory than the first. Exits with 1 unless all of it was survived.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from soak_faults import Faults
from soak_watch import Watch, verdict
from victim import Victim

from evenflow.access.keys import hash_key
from evenflow.bench.harness import summary, write_result
from evenflow.demo.assets import model_path, questions, random_adapter

IN_FLIGHT_AT_CAPACITY = 64
ANSWER_WITHIN_S = 120.0
FOLDERS_PER_MINUTE = 70
"""2,100 hostile folders in half an hour."""


@dataclass(frozen=True)
class Question:
    """One request and, once it was asked alone, its answer."""

    adapter: str
    prompt: str
    max_tokens: int
    is_stream: bool

    @property
    def body(self) -> dict[str, Any]:
        fixed = {"temperature": 0, "ignore_eos": True}
        return {"model": self.adapter, "prompt": self.prompt, "max_tokens": self.max_tokens, "stream": self.is_stream, **fixed}


@dataclass
class Tally:
    """What became of the requests of one stage."""

    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


class Clients:
    """Clients with keys, a connection pool, and the answers that are right."""

    def __init__(self, url: str, keys: list[str], questions: list[Question]) -> None:
        limits = httpx.Limits(max_connections=2000, max_keepalive_connections=400)
        self.http = httpx.AsyncClient(base_url=url, timeout=ANSWER_WITHIN_S, limits=limits)
        self.keys = keys
        self.questions = questions
        self.right: dict[Question, str] = {}

    async def ask(self, question: Question, key: str) -> tuple[int, str]:
        """(status, text): the text of an answer, or the body of a refusal."""
        headers = {"Authorization": f"Bearer {key}"}
        if not question.is_stream:
            answer = await self.http.post("/v1/completions", json=question.body, headers=headers)
            return answer.status_code, answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text
        parts: list[str] = []
        async with self.http.stream("POST", "/v1/completions", json=question.body, headers=headers) as answer:
            if answer.status_code != 200:
                return answer.status_code, (await answer.aread()).decode()
            async for line in answer.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = httpx.Response(200, content=line[6:]).json()
                if "error" in event:
                    return int(event["error"].get("status") or 503), str(event)
                parts.append(event["choices"][0]["text"])
        return 200, "".join(parts)

    async def learn(self) -> None:
        """Ask every question alone."""
        for question in self.questions:
            status, text = await self.ask(question, self.keys[0])
            assert status == 200, f"{status}: {text}"
            self.right[question] = text

    async def judged(self, question: Question, key: str, tally: Tally) -> None:
        """Ask, compare, and write down what became of it."""
        began_s = time.monotonic()
        try:
            status, text = await self.ask(question, key)
        except Exception as error:  # whatever it is, it is an answer that was lost
            outcome, text = "lost", f"{type(error).__name__}: {error}"
        else:
            outcome = ("right" if text == self.right[question] else "wrong") if status == 200 else str(status)
        tally.outcomes[outcome] += 1
        if outcome == "right":
            tally.latencies_s.append(time.monotonic() - began_s)
        elif outcome not in ("429", "503") and len(tally.unexpected) < 20:
            tally.unexpected.append(f"{question.adapter} {'stream ' if question.is_stream else ''}{outcome}: {text[:300]}")

    async def capacity(self, seconds: float, rng: Random) -> float:
        """Answers a second with as many requests in flight as the batch and its queue want."""
        tally, until_s = Tally(), time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < until_s:
                await self.judged(rng.choice(self.questions), rng.choice(self.keys), tally)

        await asyncio.gather(*(one() for _ in range(IN_FLIGHT_AT_CAPACITY)))
        assert set(tally.outcomes) == {"right"}, (tally.outcomes, tally.unexpected)
        return tally.outcomes["right"] / seconds

    async def offer(self, per_s: float, seconds: float, rng: Random) -> Tally:
        """Poisson arrivals of random clients, open loop; ends when the last is answered.

        On a machine that is too busy for so many arrivals, fewer come: the time is kept, and the tally says how many came.
        """
        tally, asking = Tally(), set[asyncio.Task[None]]()
        next_s = time.monotonic()
        until_s = next_s + seconds
        while max(next_s, time.monotonic()) < until_s:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            task = asyncio.create_task(self.judged(rng.choice(self.questions), rng.choice(self.keys), tally))
            asking.add(task)
            task.add_done_callback(asking.discard)
            next_s += rng.expovariate(per_s)
        await asyncio.gather(*asking)
        return tally


def described(tally: Tally, per_s: float) -> dict[str, Any]:
    """A tally for the result's file."""
    times = {name: round(value, 4) for name, value in summary(tally.latencies_s).items()} if tally.latencies_s else {}
    return {
        "offered_per_s": round(per_s, 2),
        "outcomes": dict(tally.outcomes),
        "latency_s": times,
        "unexpected": tally.unexpected,
    }


async def soak(victim: Victim, clients: Clients, faults: Faults, minutes: float, rng: Random) -> dict[str, Any]:
    """The whole of it; returns the results."""
    await clients.learn()
    told("every question was asked alone")
    capacity = await clients.capacity(min(20.0, 6 * minutes), rng)
    told(f"capacity: {capacity:.1f} answers a second")
    engine = victim.engine.pid
    await asyncio.sleep(2.0)
    watch = Watch(victim, clients.http)
    watching = asyncio.create_task(watch.run())
    faulting = asyncio.create_task(faults.run(clients.http))
    stages = {}
    for name, share in (("80 %", 0.8), ("150 %", 1.5), ("80 % again", 0.8), ("150 % again", 1.5)):
        tally = await clients.offer(share * capacity, 15 * minutes, rng)
        stages[name] = described(tally, share * capacity)
        told(f"{name}: {dict(tally.outcomes)}")
    faults.stop()
    await faulting
    told(f"faults: {dict(faults.done)}")
    await asyncio.sleep(10.0)
    watch.stop()
    await watching
    last, answered = Tally(), len(clients.questions) // 10 or 1
    for question in clients.questions[:answered]:
        await clients.judged(question, clients.keys[0], last)
    await clients.http.aclose()
    return {
        "capacity_answers_per_s": round(capacity, 2),
        "stages": stages,
        "afterwards, one by one": described(last, 0.0),
        "faults": dict(faults.done),
        "answers_to_faults": {name: dict(statuses) for name, statuses in faults.statuses.items()},
        "is_same_engine": victim.engine.pid == engine,
        "tracebacks_in_log": victim.text.count("Traceback"),
        "resources": watch.described(),
    }


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="where the server's log is kept")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rng = Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="evenflow-soak-") as name:
        root = Path(name)
        adapters = [random_adapter(root / "adapters" / f"a{i:04}", i).name for i in range(args.adapters)]
        keys = [f"key-{i}-{rng.getrandbits(64):x}" for i in range(args.clients)]
        keys_file = root / "clients.toml"
        rows = [f'[clients.c{i:03}]\napi_keys = ["{hash_key(key)}"]\n' for i, key in enumerate(keys)]
        rows.append(f'[admin]\napi_keys = ["{hash_key("admin")}"]\n')
        keys_file.write_text("\n".join(rows))
        asked = [
            Question(adapter, f"{rng.choice(questions())} {i}", rng.randint(4, 24), bool(i % 2))
            for i, adapter in enumerate(adapters)
        ]
        options = ["--adapter-dir", str(root / "adapters"), "--clients", str(keys_file), "--memory", "12MiB"]
        options += ["--adapter-cache", str(root / "cache"), "--adapter-cache-size", "32MiB", "--adapter-load-timeout", "2"]
        options += ["--send-timeout", "10", "--body-timeout", "10", "--max-num-seqs", "32", "--drain-timeout", "60"]
        options += ["--max-queue", "400"]  # so that nobody waits for longer than a client would
        with Victim(str(model_path()), *options) as victim:
            victim.ready().close()
            faults = Faults(victim, root, adapters, keys, args.seed, round(FOLDERS_PER_MINUTE * args.minutes))
            clients = Clients(victim.url, keys, asked)
            results = asyncio.run(soak(victim, clients, faults, args.minutes, rng))
            victim.process.terminate()
            results["exit_status"] = victim.process.wait(90)
            victim.assert_nothing_left()
            if args.log is not None:
                args.log.write_text(victim.text)
    results["not_survived"] = verdict(results)
    parameters = {"minutes": args.minutes, "clients": args.clients, "adapters": args.adapters, "seed": args.seed}
    write_result(args.json, "soak", {**parameters, "options": options[4:]}, results)
    for fault in results["not_survived"]:
        told(f"NOT SURVIVED: {fault}")
    return 1 if results["not_survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
