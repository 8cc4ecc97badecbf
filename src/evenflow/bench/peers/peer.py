"""What a comparison asks of every engine, ours included: start, answer exactly, take a load, stop."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evenflow.base.errors import EvenFlowError


class PeerMissing(EvenFlowError):
    """A peer's environment is not there, or it cannot do what is asked. The message says how to get it."""


class PeerFailed(EvenFlowError):
    """A peer that is there did not start, did not answer, or ended."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all engines of a comparison serve."""

    model: Path
    adapters: Mapping[str, Path]
    """Folders by name, PEFT's form."""
    num_streams: int
    """Requests at once, the most of all cases."""
    num_tokens: int
    """Prompt and output of one request, the most of all cases."""
    num_threads: int
    cache: Path
    """What is converted for a peer is kept below it."""
    logs: Path
    """What a peer writes goes below it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that are sent at once; greedy, and every answer has exactly ``output_tokens`` tokens."""

    prompts: Sequence[Sequence[int]]
    """Token ids, all of one length."""
    adapters: Sequence[str | None]
    """For each prompt; None: the base model."""
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """What one batch took."""

    seconds: float
    ttft_s: float | None = None
    """Median over requests; None where the engine does not stream."""


class Peer(Protocol):
    """One engine, in one form of weights. Used in this order; ``stop`` may come at any time, and twice."""

    name: str
    """As it is asked for: `NAME` or `NAME:FORM`."""

    def start(self, setup: Setup) -> None:
        """Begin serving ``setup``. Raises PeerMissing or PeerFailed."""
        ...

    def answer(self, batch: Batch) -> list[list[int]]:
        """Token ids of the answers. Raises PeerFailed."""
        ...

    def measure(self, batch: Batch) -> Timing:
        """Answer ``batch`` in the engine's best form and say how long it took. Raises PeerFailed."""
        ...

    def stop(self) -> None:
        """End it and everything that it started."""
        ...


def environment_python(cache: Path, name: str) -> Path:
    """The interpreter of a peer's own environment. Raises PeerMissing with the command that builds it."""
    python = cache / f"env-{name}" / "bin" / "python"
    if not python.exists():
        raise PeerMissing(f"its environment is not built; `make peers PEERS={name}` builds it")
    return python


def converted_path(setup: Setup, source: Path, form: str) -> Path:
    """Where a peer's form of a folder lies: by the folder's files, so that a changed one is converted again."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(source.iterdir()) if file.is_file()]
    digest = hashlib.sha256(repr((str(source.resolve()), facts)).encode()).hexdigest()[:16]
    return setup.cache / "peers" / f"{source.name}-{digest}.{form}"
