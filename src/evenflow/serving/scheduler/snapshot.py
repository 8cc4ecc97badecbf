"""What the scheduler tells about itself: values only."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.serving.core.request import Request


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A request that the scheduler itself had to end, and why."""

    request: Request
    message: str
    error_type: str = "EvenFlowError"
    """Class in evenflow.base.errors, if it ended in an error."""
    predicted_ttft_s: float = 0.0
    """Of one that was given up (finish reason SHED): the time to first token it would have had, from its arrival."""
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SchedulerSnapshot:
    """Numbers for metrics, counted since the start. Costs nothing to take."""

    num_waiting: int
    num_running: int
    waiting_for: str
    """What the head of the line lacked in the last step: "memory", "slots", "policy"; "" if nothing waited."""
    num_pages: int
    num_free_pages: int
    num_kv_pages: int
    """Of running requests; those that they borrow from the prefix cache count once."""
    num_idle_cache_pages: int
    """Kept by the prefix cache, and used by nobody now."""
    num_adapter_pages: int
    num_idle_adapter_pages: int
    page_tokens: int
    num_resident_adapters: int
    num_adapter_loads: int
    num_adapter_evictions: int
    num_adapter_prefetches: int
    num_wasted_prefetches: int
    """Prefetched adapters that were evicted before anybody used them."""
    num_failed_adapter_loads: int
    loaded_adapter_bytes: int
    num_preemptions: int
    num_shed: int
    num_steps: int
    prompt_tokens: int
    completion_tokens: int
    recomputed_tokens: int
    cached_tokens: int
    """Prompt tokens found in the prefix cache."""
