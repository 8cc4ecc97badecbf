"""How many engines the waiting prompts want: the rule that Ray Serve's autoscaler is given."""

from __future__ import annotations

import math
from typing import Any

METRIC = "waiting_tokens"


def wanted_replicas(waiting_tokens: float, per_replica: int, running: int) -> int:
    """One engine for each ``per_replica`` waiting prompt tokens, and never fewer than half of those that run at once.

    An engine without waiting prompts may be in the middle of many answers, so what runs is given up slowly.
    """
    return max(math.ceil(waiting_tokens / per_replica), math.ceil(running / 2), 1)


class ByWaitingTokens:
    """Ray Serve's policy: ``per_replica`` waiting prompt tokens for each engine, within the configured bounds."""

    def __init__(self, per_replica: int = 4096) -> None:
        self._per_replica = per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:  # Any: ray's AutoscalingContext
        """The wanted number, and no state to keep."""
        by_replica = (context.aggregated_metrics or {}).get(METRIC, {})
        wanted = wanted_replicas(sum(by_replica.values()), self._per_replica, context.current_num_replicas)
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(max(wanted, least), most), {}
