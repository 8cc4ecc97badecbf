"""What one step may hold. A rule fills a step by calling ``advance`` and ``admit`` in its own order."""

from __future__ import annotations

from typing import Protocol

from evenflow.base.errors import ConfigError
from evenflow.serving.scheduler.limits import SchedulerLimits


class Step(Protocol):
    """The step that is being filled, as a rule sees it."""

    @property
    def limits(self) -> SchedulerLimits: ...

    @property
    def num_running(self) -> int:
        """Requests that run, those admitted to this step included."""
        ...

    def advance(self, max_tokens: int) -> int:
        """Give running requests their next tokens: those that decode first, then prompts by admission. Returns the rows."""
        ...

    def admit(self, max_tokens: int, *, whole_prompts: bool) -> int:
        """Start waiting requests, in the policy's order, until one does not fit. Returns the rows.

        ``whole_prompts``: a prompt is computed in one step. Then only the first may be longer than ``max_tokens``.
        """
        ...


class BatchRule(Protocol):
    """Fills one step after the other; may remember what the last steps were."""

    def fill(self, step: Step) -> None:
        """Choose what this step holds."""
        ...


class MixedBatchRule:
    """Chunked prefill beside decode under one budget of rows (max_batch_tokens): nobody waits for a long prompt."""

    def fill(self, step: Step) -> None:
        """Running requests first, new ones with what is left."""
        budget = step.limits.max_batch_tokens
        budget -= step.advance(budget)
        if budget > 0:
            step.admit(budget, whole_prompts=False)


class ExclusivePrefillRule:
    """The papers' servers: whole prompts alone in a step, and only when nothing runs or after some decode steps.

    ``decode_steps``: decode steps between two attempts to admit; once they have passed, every step tries until
    one succeeds. ``max_prefill_tokens``: rows of a prefill step (the artifact: max(pool / 6, 3072)).
    """

    def __init__(self, *, max_prefill_tokens: int, decode_steps: int = 10) -> None:
        if max_prefill_tokens < 1 or decode_steps < 0:
            raise ConfigError(
                f"max_prefill_tokens is {max_prefill_tokens}, decode_steps {decode_steps}; allowed: from 1, from 0"
            )
        self.max_prefill_tokens = max_prefill_tokens
        self.decode_steps = decode_steps
        self._steps_since_prefill = 0

    def fill(self, step: Step) -> None:
        """Prefill if it is time and something fits, else decode."""
        is_time = step.num_running == 0 or self._steps_since_prefill >= self.decode_steps
        if is_time and step.admit(self.max_prefill_tokens, whole_prompts=True):
            self._steps_since_prefill = 0
            return
        step.advance(step.num_running)
        self._steps_since_prefill += 1
