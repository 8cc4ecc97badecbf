"""Engines against each other on one machine: started, checked against a reference, warmed, then measured in turn, A B A B.

All stand beside each other while they are measured, so that a slow minute of the machine hits all; one is asked at a time.
An engine that is missing, fails or answers wrongly is reported as such and not measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from evenflow.bench.harness import paired_ratio, summary
from evenflow.bench.load.load_plan import WORDS
from evenflow.bench.peers.peer import Batch, Peer, PeerFailed, PeerMissing, Setup, Timing

PROBE_PROMPTS, PROBE_TOKENS, PROBE_OUTPUT = 4, 32, 8
LONGEST_PROBE = PROBE_TOKENS + PROBE_OUTPUT
RIGHT_ENOUGH = 0.25
"""Part of the reference's first tokens that a right engine's answers begin with, at least. In float32 and bfloat16 it is near
1, in 4 bits on weights of chance near 0.5; an engine that reads other weights has one token of a vocabulary by luck."""

OK, MISSING, FAILED, WRONG = "ok", "missing", "failed", "wrong"


class Encoder(Protocol):
    """Text to token ids."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """So many requests at once, of so many tokens, over so many adapters (0: the base model)."""

    streams: int
    prompt_tokens: int
    output_tokens: int
    num_adapters: int

    @property
    def name(self) -> str:
        """For tables."""
        plural = "s" if self.num_adapters > 1 else ""
        adapters = f", {self.num_adapters} adapter{plural}" if self.num_adapters else ""
        return f"{self.streams} x ({self.prompt_tokens} + {self.output_tokens}){adapters}"


@dataclass(slots=True)
class Standing:
    """What became of one engine."""

    status: str = OK
    message: str = ""
    start_s: float | None = None
    agreement: float | None = None
    """With the reference, of the base model: mean share of the first tokens until the first that differs."""
    agreement_adapters: float | None = None
    """The same over adapters."""


@dataclass(slots=True)
class Comparison:
    """All of one run."""

    standings: dict[str, Standing]
    cases: list[Case]
    timings: dict[str, dict[str, list[Timing]]] = field(default_factory=dict)
    """By case and engine, one for each round."""
    faults: dict[str, dict[str, str]] = field(default_factory=dict)
    """By case and engine: why it was not measured."""

    def results(self, first: str) -> list[dict[str, Any]]:
        """A row for each case: output tokens per second of every engine, and how many times as fast ``first`` was."""
        rows = []
        for case in self.cases:
            timings = self.timings.get(case.name, {})
            total = case.streams * case.output_tokens
            rates = {name: [total / timing.seconds for timing in found] for name, found in timings.items()}
            ttft = {name: [t.ttft_s for t in found if t.ttft_s is not None] for name, found in timings.items()}
            rows.append(
                {
                    "case": case.name,
                    "streams": case.streams,
                    "prompt_tokens": case.prompt_tokens,
                    "output_tokens": case.output_tokens,
                    "num_adapters": case.num_adapters,
                    "output_tokens_per_s": {name: summary(found) for name, found in rates.items()},
                    "ttft_s": {name: statistics.median(found) for name, found in ttft.items() if found},
                    "times_as_fast": {n: paired_ratio(rates[first], rates[n]) for n in rates if first in rates},
                    "faults": self.faults.get(case.name, {}),
                    "samples": rates,
                }
            )
        return rows


class Prompts:
    """Prompts of common words, exactly so many tokens of the model's tokenizer; no two begin alike."""

    def __init__(self, encoder: Encoder, seed: int) -> None:
        self._encoder = encoder
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int, tokens: int) -> list[list[int]]:
        """``count`` prompts of ``tokens`` token ids."""
        return [self._one(tokens) for _ in range(count)]

    def _one(self, tokens: int) -> list[int]:
        found: list[int] = []
        while len(found) < tokens:
            words = " ".join(WORDS[i] for i in self._rng.integers(0, len(WORDS), tokens))
            found += self._encoder.encode(words, add_special_tokens=False)
        return found[:tokens]


def adapters_of(case: Case, names: Sequence[str]) -> list[str | None]:
    """The adapter of each request of a case, in turn."""
    if not case.num_adapters:
        return [None] * case.streams
    return [names[i % case.num_adapters] for i in range(case.streams)]


def probes(prompts: Prompts, adapters: Sequence[str]) -> list[Batch]:
    """What every engine is asked for checking: the base model, then the first two adapters in turn."""
    drawn = prompts.draw(PROBE_PROMPTS, PROBE_TOKENS)
    chosen: list[list[str | None]] = [[None] * len(drawn)]
    if adapters:
        chosen.append([adapters[i % min(2, len(adapters))] for i in range(len(drawn))])
    return [Batch(drawn, names, PROBE_OUTPUT) for names in chosen]


def agreement(answers: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Mean share of the reference's tokens that an answer begins with."""
    shares = []
    for found, wanted in zip(answers, reference, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
        shares.append(same / len(wanted))
    return sum(shares) / len(shares)


def compare_peers(
    peers: Mapping[str, Callable[[], Peer]],
    reference: Callable[[], Peer] | None,
    setup: Setup,
    cases: Sequence[Case],
    encoder: Encoder,
    *,
    rounds: int,
    seed: int = 0,
    clock: Callable[[], float],
    end_s: float | None = None,
    tell: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Run the whole comparison; no round begins after ``end_s`` of ``clock``. Every engine is stopped, whatever happens."""
    names = list(setup.adapters)
    asked = probes(Prompts(encoder, seed), names)
    expected = _reference_answers(reference, setup, asked, tell)
    comparison = Comparison({name: Standing() for name in peers}, list(cases))
    with ExitStack() as stack:
        running: dict[str, Peer] = {}
        for name, make in peers.items():
            tell(f"starting {name}")
            standing = comparison.standings[name]
            try:
                peer = make()
                stack.callback(peer.stop)
                began_s = clock()
                peer.start(setup)
                standing.start_s = clock() - began_s
                _check(peer, standing, asked, expected)
            except PeerMissing as error:
                standing.status, standing.message = MISSING, str(error)
            except PeerFailed as error:
                standing.status, standing.message = FAILED, str(error)
            if standing.status == OK:
                running[name] = peer
            elif standing.status != MISSING:
                peer.stop()
        for number, case in enumerate(cases):
            _measure_case(comparison, running, case, names, Prompts(encoder, seed + 1000 * number), rounds, clock, end_s, tell)
    return comparison


def _reference_answers(
    reference: Callable[[], Peer] | None, setup: Setup, asked: Sequence[Batch], tell: Callable[[str], None]
) -> list[list[list[int]]] | None:
    if reference is None:
        return None
    tell("asking the reference")
    peer = reference()
    try:
        peer.start(setup)
        return [peer.answer(batch) for batch in asked]
    finally:
        peer.stop()


def _check(peer: Peer, standing: Standing, asked: Sequence[Batch], expected: list[list[list[int]]] | None) -> None:
    """Ask the probes, which warm the engine too, and hold the answers against the reference's."""
    for number, batch in enumerate(asked):
        is_base = number == 0
        try:
            answers = peer.answer(batch)
        except PeerFailed as error:
            if is_base:
                raise
            standing.message = f"adapters: {error}"
            continue
        if expected is None:
            continue
        found = agreement(answers, expected[number])
        if is_base:
            standing.agreement = found
        else:
            standing.agreement_adapters = found
        if found < RIGHT_ENOUGH:
            what = "base model" if is_base else "adapters"
            standing.status = WRONG
            standing.message = f"{what}: begins with {100 * found:.0f} % of the reference's tokens"
            return


def _measure_case(
    comparison: Comparison, running: Mapping[str, Peer], case: Case, names: Sequence[str], prompts: Prompts, rounds: int,
    clock: Callable[[], float], end_s: float | None, tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Rounds of one case: a short one that warms and is dropped, then all engines in turn, on new prompts each round."""
    timings: dict[str, list[Timing]] = {}
    faults: dict[str, str] = {}
    chosen = adapters_of(case, names)
    for round_number in range(rounds + 1):
        if round_number > 1 and end_s is not None and clock() > end_s:
            break
        if not timings and round_number == 1 and end_s is not None and clock() > end_s:
            faults.update(dict.fromkeys(running, "no time was left"))
            break
        output_tokens = case.output_tokens if round_number else min(4, case.output_tokens)
        batch = Batch(prompts.draw(case.streams, case.prompt_tokens), chosen, output_tokens)
        for name, peer in running.items():
            if name in faults:
                continue
            tell(f"{case.name}, round {round_number} of {rounds}: {name}")
            try:
                timing = peer.measure(batch)
            except PeerFailed as error:
                faults[name] = str(error)
                timings.pop(name, None)
                continue
            if round_number:
                timings.setdefault(name, []).append(timing)
    comparison.timings[case.name] = timings
    comparison.faults[case.name] = faults
