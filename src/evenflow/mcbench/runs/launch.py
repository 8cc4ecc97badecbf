"""Start local gloo ranks, follow their records, and end them all if one fails.

Ranks write one JSON line per partial result, so a rank that dies costs only what was not finished. A shaped link is made of
network namespaces where that is permitted, else by a token bucket in each rank's transport.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenflow.base.children import ChildProcess, exit_in_words
from evenflow.base.errors import WireError
from evenflow.comm.collectives.links import Link, NamespaceLinks, why_no_namespaces

_STOP_S = 5.0
"""How long the ranks may take to end once one of them has failed."""


@dataclass
class Launched:
    """What the ranks left behind."""

    records: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None
    link_kind: str = "unlimited"
    threads: int = 1
    """Compute threads of each rank."""
    errors: dict[int, str] = field(default_factory=dict)
    """What the ranks that failed wrote to standard error: the last 8,000 characters of each."""


class RanksFailed(WireError):
    """Ranks ended before they had a result. ``errors_by_rank`` is what they wrote to standard error."""

    def __init__(self, message: str, errors_by_rank: Mapping[int, str]) -> None:
        super().__init__(message)
        self.errors_by_rank = dict(errors_by_rank)

    def __reduce__(self) -> tuple[Any, ...]:
        return RanksFailed, (str(self), self.errors_by_rank)


def launch(
    job: str,
    payload: Mapping[str, Any],
    world_size: int,
    link: Link,
    progress: Callable[[str, Any], None] = lambda kind, value: None,
    threads: int = 0,
) -> Launched:
    """Run ``job`` (a name known to ``rank``) on ``world_size`` local ranks until all have ended.

    ``threads`` is how many threads each rank computes with; 0: the cores of this machine, shared out.
    """
    launched = Launched(threads=threads or max(1, (os.cpu_count() or 1) // world_size))
    with tempfile.TemporaryDirectory(prefix="evenflow-") as folder_name, ExitStack() as stack:
        folder = Path(folder_name)
        spaces: NamespaceLinks | None = None
        is_shaped_in_transport = False
        if link.bit_per_s is not None:
            why = why_no_namespaces()
            if why is None:
                spaces = stack.enter_context(NamespaceLinks(world_size, link))
                launched.link_kind = "network namespaces, tc tbf"
            else:
                is_shaped_in_transport = True
                launched.link_kind = f"emulated: token bucket in the transport ({why})"
        settings = {
            "job": job,
            "payload": dict(payload),
            "world_size": world_size,
            "threads": launched.threads,
            "cores": cores_of_ranks(world_size),
            "interface": spaces.interface if spaces else "lo",
            "link": link.name if is_shaped_in_transport else "unlimited",
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        before = [spaces.sent_bytes(rank) for rank in range(world_size)] if spaces else []
        children = [_started(folder, rank, spaces) for rank in range(world_size)]
        launched.failure = _follow(children, folder, launched, progress)
        if spaces:
            after = [spaces.sent_bytes(rank) for rank in range(world_size)]
            launched.records.append({"kind": "interface", "value": [b - a for a, b in zip(before, after)]})
    return launched


def cores_of_ranks(world_size: int) -> list[list[int]]:
    """Return the cores of each rank, equally many and no core twice; empty lists where there are too few to share out.

    Without cores of its own a rank's network threads may be woken on the core where another rank computes, and then each wait
    there for up to 3 ms, until that rank's time slice is over.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = len(cores) // world_size
    return [cores[rank * each : (rank + 1) * each] for rank in range(world_size)]


def _started(folder: Path, rank: int, spaces: NamespaceLinks | None) -> ChildProcess:
    command = [sys.executable, "-m", "evenflow.mcbench.rank", str(folder), str(rank)]
    with (folder / f"errors{rank}").open("wb") as errors:
        return ChildProcess([*(spaces.prefix(rank) if spaces else []), *command], stdout=errors, stderr=subprocess.STDOUT)


def _follow(
    children: Sequence[ChildProcess],
    folder: Path,
    launched: Launched,
    progress: Callable[[str, Any], None],
) -> str | None:
    """Read records until all ranks have ended. One that fails ends the others."""
    path, position, records = folder / "records.jsonl", 0, launched.records
    failure: str | None = None
    try:
        while True:
            codes = [child.exit_code for child in children]
            if path.exists():
                with path.open() as file:
                    file.seek(position)
                    for line in iter(file.readline, ""):
                        if not line.endswith("\n"):
                            break
                        position += len(line.encode())
                        records.append(json.loads(line))
                        progress(records[-1]["kind"], records[-1]["value"])
            if all(code is not None for code in codes):
                break
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                time.sleep(1.0)  # the others notice by themselves and say why
                break
            time.sleep(0.05)
        bad = [rank for rank, child in enumerate(children) if child.exit_code]
        if bad:
            launched.errors = {rank: (folder / f"errors{rank}").read_text(errors="replace")[-8000:] for rank in bad}
            for rank, text in launched.errors.items():
                logging.getLogger(__name__).warning("rank %d wrote before it failed:\n%s", rank, text.strip())
            failure = obituaries({rank: _obituary(children[rank].exit_code, folder / f"errors{rank}") for rank in bad})
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.end(_STOP_S)
    return failure


def obituaries(words_by_rank: Mapping[int, str]) -> str:
    """Return one line: what was the same on several ranks is said once."""
    ranks_by_words: dict[str, list[int]] = {}
    for rank, words in words_by_rank.items():
        ranks_by_words.setdefault(words, []).append(rank)
    return "; ".join(
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} {words}" for words, ranks in ranks_by_words.items()
    )


def _obituary(code: int | None, errors: Path) -> str:
    if code is not None and code < 0:
        how = f"ended by {exit_in_words(code).removeprefix('signal ')}"
        return how + (f": {_last_words(errors)}" if errors.stat().st_size else "")
    return f"failed: {_last_words(errors)}"


def _last_words(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
