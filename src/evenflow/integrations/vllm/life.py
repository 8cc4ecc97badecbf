"""What the books remember of one request while it lives."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.integrations.vllm.request_view import EngineRequest, RequestView
from evenflow.integrations.vllm.tally import Tally


@dataclass(slots=True, eq=False)
class Life:
    """One request from its arrival to its end, or one turn of a session with streaming input."""

    request: EngineRequest
    view: RequestView
    place: int
    """Order of arrival."""
    is_waiting: bool = True
    has_account: bool = False
    """The policy has admitted it and has yet to settle it."""
    first_token: int = 0
    """Tokens of the prompt that were there when it was admitted: found in the prefix cache, or a session's earlier turns."""
    planned_tokens: int = 0
    """Prompt tokens to compute, as the policy was told."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache, as the policy was told."""
    is_prompt_booked: bool = False
    """The prompt has been reported as received, which happens with the first output token."""
    computed_tokens: int = 0
    """The most tokens that were computed when it was preempted."""
    tallies: tuple[Tally, ...] = ()
    """Where its figures are counted: its client's, and its adapter's."""

    def received_prompt_tokens(self) -> int:
        """Of the planned prompt tokens, those that were computed or are being computed in the present step."""
        computed = max(self.computed_tokens, self.request.num_computed_tokens) - self.first_token
        return max(0, min(self.planned_tokens, computed))
