"""A scheduler for measurements: one vLLM whose order is another one whenever a file says so and nothing is under way.

The file that EVENFLOW_SWITCH names holds the name of a policy, or ``vllm``: then the books are off and the waiting line is
served as vLLM's own is. So orders can be compared in one process, one after the other, at the same temperature.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from evenflow.integrations.vllm.scheduler import FairScheduler, FairSyncScheduler
from evenflow.integrations.vllm.settings import read_settings


class SwitchingScheduler(FairSyncScheduler):
    """Synchronous, as vLLM is on CPUs."""

    def __new__(cls, *args: Any, **kwargs: Any) -> FairScheduler:
        """Itself, whatever the configuration says."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._switch = Path(os.environ["EVENFLOW_SWITCH"])
        self._order = ""

    def add_request(self, request: Any) -> None:
        """Look at the file whenever the first request of a round comes."""
        if not self.requests and (order := self._switch.read_text().strip()) != self._order:
            self._order = order
            line = self.waiting
            if order == "vllm":
                line._books, line._retry_s = None, math.inf
            else:
                settings = replace(read_settings(os.environ), policy=order)
                line._make_books = lambda: self._make_books(settings)
                line._begin_anew(())
        super().add_request(request)
