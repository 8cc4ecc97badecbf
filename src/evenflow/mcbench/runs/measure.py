"""Where the time of a training iteration goes, and what it sends: two passes over the same batches.

The first pass takes nothing but the whole iteration (the headline). The second runs the stopwatch with a barrier before
every collective, so that waiting for a peer is not called communication.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from evenflow.comm import Ledger
from evenflow.comm.collectives.links import interface_bytes
from evenflow.comm.collectives.stopwatch import Stopwatch

COMMUNICATION = ("tp communication", "pp communication", "dp communication")


def measure(
    step: Callable[[], None], stopwatch: Stopwatch, ledger: Ledger, count: int, warm: int = 3, interface: str = ""
) -> dict[str, Any]:
    """Run ``step`` warm + 2 count times; return milliseconds by part, bytes by site, and the achieved rate of this rank.

    With the name of a network interface that carries nothing else, also what it counted, headers and all: bytes sent and
    received per step.
    """
    stopwatch.is_running = False
    for _ in range(warm):
        step()
    ledger.clear()
    totals = []
    before = interface_bytes(interface) if interface else None
    for _ in range(count):
        start = time.perf_counter()
        step()
        totals.append(1e3 * (time.perf_counter() - start))
    after = interface_bytes(interface) if interface else None
    sites = {
        site: {"planned": entry.planned / count, "counted": entry.counted / count, "exchanges": entry.exchanges / count}
        for site, entry in sorted(ledger.by_site.items())
    }
    ledger.check_integrity()
    stopwatch.clear()
    ledger.clear()
    stopwatch.is_running = True
    for _ in range(count):
        step()
    stopwatch.is_running = False
    parts = {part: 1e3 * seconds / count for part, seconds in sorted(stopwatch.seconds_by_part.items())}
    communication_s = sum(stopwatch.seconds_by_part.get(part, 0.0) for part in COMMUNICATION)
    sent = sum(entry.counted for entry in ledger.by_site.values())
    ordered = sorted(totals)
    return {
        "bytes_per_step": sites,
        "ms_per_iteration": {
            "total": median(totals),
            "total_p10": ordered[len(ordered) // 10],
            "total_p90": ordered[(9 * len(ordered)) // 10],
            "profiled": parts,
        },
        "achieved_gbit_s": 8 * sent / communication_s / 1e9 if communication_s > 0 else None,
        "raw_total_ms": totals,
        "interface_bytes_per_step": _difference(before, after, count),
    }


def expected_s(samples: Sequence[float]) -> float:
    """Return the mean of the samples but the slowest tenth.

    One exchange is either quick or slow by a time slice (3 ms): a network thread that is woken finds its core free, or has to
    wait until the other thread there has used up its slice. A training step adds up dozens of exchanges, so what counts is
    their mean; a median would be one of the two times and hide how often the other occurs.
    """
    kept = sorted(samples)[: len(samples) - len(samples) // 10]
    return sum(kept) / len(kept)


def _difference(before: tuple[int, int] | None, after: tuple[int, int] | None, count: int) -> dict[str, float] | None:
    if before is None or after is None:
        return None
    return {"sent": (after[0] - before[0]) / count, "received": (after[1] - before[1]) / count}
