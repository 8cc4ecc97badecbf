"""What the engine measures of itself, and the snapshot made of it for /metrics, limits and reports."""

from __future__ import annotations

import bisect
import heapq
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.client.messages import ITERATION_TOKENS, AdapterStats, ClientStats, EngineStats
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler.scheduler import Scheduler
from evenflow.serving.scheduler.tallies import Tally

_MAX_ROWS = 512
"""How many clients, and how many adapters, a snapshot lists one by one: the busiest of each."""
_WINDOW_S = 10.0


@dataclass(slots=True)
class Meters:
    """Times of steps, and throughput over the last seconds in which there was work."""

    scheduling_s: float = 0.0
    executing_s: float = 0.0
    num_step_tokens: int = 0
    num_steps_by_tokens: list[int] = field(default_factory=lambda: [0] * (len(ITERATION_TOKENS) + 1))
    _steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    _marks: deque[tuple[float, int, int]] = field(default_factory=deque)
    """(working seconds so far, prompt tokens so far, output tokens so far)"""

    def record(self, *, scheduling_s: float, executing_s: float, num_tokens: int) -> None:
        """Book one step that computed so many tokens."""
        self.num_step_tokens += num_tokens
        self.num_steps_by_tokens[bisect.bisect_left(ITERATION_TOKENS, num_tokens)] += 1
        self.scheduling_s += scheduling_s
        self.executing_s += executing_s
        self._steps_s.append(scheduling_s + executing_s)

    @property
    def step_s(self) -> float:
        """Median of the last steps, in seconds."""
        return statistics.median(self._steps_s) if self._steps_s else 0.0

    def rates(self, prompt_tokens: int, completion_tokens: int) -> tuple[float, float]:
        """(prompt, output) tokens per second of work, over the last ten working seconds."""
        working_s = self.scheduling_s + self.executing_s
        marks = self._marks
        if not marks or working_s > marks[-1][0]:
            marks.append((working_s, prompt_tokens, completion_tokens))
        while len(marks) > 2 and marks[0][0] < working_s - _WINDOW_S:
            marks.popleft()
        first_s, first_prompt, first_completion = marks[0]
        if working_s <= first_s:
            return 0.0, 0.0
        return (prompt_tokens - first_prompt) / (working_s - first_s), (completion_tokens - first_completion) / (
            working_s - first_s
        )


def collect_stats(
    scheduler: Scheduler,
    residency: Residency,
    catalog: Catalog,
    meters: Meters,
    policy: str,
    weight_of: Callable[[str], float],
    now_s: float,
) -> EngineStats:
    """The snapshot. O(clients + adapters in the books)."""
    snapshot = scheduler.snapshot()
    counters, service = scheduler.policy.counters(), scheduler.service_by_client()
    prompt_rate, completion_rate = meters.rates(snapshot.prompt_tokens, snapshot.completion_tokens)
    clients = {
        client: ClientStats(
            num_waiting=tally.num_waiting,
            num_running=tally.num_running,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            cached_tokens=tally.cached_tokens,
            service=service[client],
            virtual_counter=counters.get(client),
            weight=weight_of(client),
        )
        for client, tally in _busiest(scheduler.clients)
    }
    adapters: dict[str, AdapterStats] = {}
    for name, tally in _busiest(scheduler.adapters):
        digest = AdapterDigest(name)
        if digest in catalog:
            adapters[digest] = AdapterStats(
                name=catalog.last_name(digest),
                num_waiting=tally.num_waiting,
                num_running=tally.num_running,
                prompt_tokens=tally.prompt_tokens,
                completion_tokens=tally.completion_tokens,
                cached_tokens=tally.cached_tokens,
                num_loads=residency.num_loads_of(digest),
                is_resident=residency.is_resident(digest),
            )
    return EngineStats(
        time_s=now_s,
        policy=policy,
        num_failed_exchanges=getattr(scheduler.policy, "num_failed_exchanges", 0),
        num_running=snapshot.num_running,
        num_waiting=snapshot.num_waiting,
        num_waiting_by_reason={snapshot.waiting_for: snapshot.num_waiting} if snapshot.waiting_for else {},
        num_pages=snapshot.num_pages,
        num_free_pages=snapshot.num_free_pages,
        num_kv_pages=snapshot.num_kv_pages,
        num_adapter_pages=snapshot.num_adapter_pages,
        num_idle_cache_pages=snapshot.num_idle_cache_pages,
        page_tokens=snapshot.page_tokens,
        num_preemptions=snapshot.num_preemptions,
        num_shed=snapshot.num_shed,
        prompt_tokens=snapshot.prompt_tokens,
        completion_tokens=snapshot.completion_tokens,
        recomputed_tokens=snapshot.recomputed_tokens,
        cached_tokens=snapshot.cached_tokens,
        caches_prefixes=scheduler.caches_prefixes,
        num_steps=snapshot.num_steps,
        step_s=meters.step_s,
        num_steps_by_tokens=list(meters.num_steps_by_tokens),
        num_step_tokens=meters.num_step_tokens,
        scheduling_s=meters.scheduling_s,
        executing_s=meters.executing_s,
        tokens_per_s=completion_rate,
        prompt_tokens_per_s=prompt_rate,
        num_adapters=len(catalog),
        num_resident_adapters=snapshot.num_resident_adapters,
        num_adapter_loads=snapshot.num_adapter_loads,
        num_adapter_evictions=snapshot.num_adapter_evictions,
        num_host_adapters=sum(not residency.is_resident(digest) for digest in catalog.on_host()),
        num_pinned_adapters=residency.num_pinned,
        adapter_bytes=catalog.size_bytes,
        host_adapter_bytes=catalog.host_bytes,
        num_adapter_prefetches=snapshot.num_adapter_prefetches,
        num_wasted_prefetches=snapshot.num_wasted_prefetches,
        loaded_adapter_bytes=snapshot.loaded_adapter_bytes,
        num_failed_adapter_loads=snapshot.num_failed_adapter_loads,
        running_adapters=[a.name for a in adapters.values() if a.num_running],
        waiting_adapters=[a.name for a in adapters.values() if a.num_waiting and not a.num_running],
        clients=clients,
        adapters=adapters,
    )


def _busiest(tallies: Mapping[str, Tally]) -> list[tuple[str, Tally]]:
    """The clients or adapters to list: those with requests first, then those that have received most."""
    if len(tallies) <= _MAX_ROWS:
        return list(tallies.items())

    def activity(item: tuple[str, Tally]) -> tuple[int, int]:
        tally = item[1]
        return tally.num_waiting + tally.num_running, tally.prompt_tokens + tally.completion_tokens

    return heapq.nlargest(_MAX_ROWS, tallies.items(), key=activity)
