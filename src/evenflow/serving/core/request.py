"""One request's life. The scheduler is the only one that changes it.

There are no phases: a step may compute at most ``num_tokens - num_computed_tokens`` tokens of a
request. Prefill, chunk, decode and recompute after a preemption are its cases.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NewType

from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.core.structured import TokenMask

RequestId = NewType("RequestId", str)
ClientId = NewType("ClientId", str)
AdapterDigest = NewType("AdapterDigest", str)
"""Identity of an adapter: a hash of its weights and its config. A name is not an identity."""


class RequestState(enum.Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(enum.StrEnum):
    """Why a request ended, in OpenAI's words where it has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    SHED = "shed"
    """Given up while it waited: its first token would have come too late."""


@dataclass(slots=True, eq=False)
class Request:
    """A prompt on its way to its last token. Owned and mutated by the Scheduler alone.

    ``client_id`` says who pays, ``adapter`` says which weights are used; one does not follow from the other.
    """

    request_id: RequestId
    client_id: ClientId
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival_s: float
    adapter: AdapterDigest | None = None
    max_output_tokens: int = 16
    """Resolved from sampling.max_tokens and the model's context when the request is made."""
    known_output_tokens: int | None = None
    """The true output length, where a trace gives it; only KnownPeakAdmission and oracle policies may read it."""
    cache_salt: str = ""
    """Only requests with the same salt find each other's prefixes in the cache."""
    slo_ttft_s: float | None = None
    """Its own objective for the time from arrival to first token; None: the server's default, if it has one."""
    token_mask: TokenMask | None = None
    """Which tokens its constraint allows next; None: it has no constraint. Kept through preemptions."""
    state: RequestState = RequestState.WAITING
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    """Tokens whose K and V are in the arena now. A preemption sets it back to 0."""
    num_cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache when the request first started."""
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0
    num_prefilled_tokens: int = 0
    """Prompt tokens computed for it, each counted once."""
    num_cache_hits: int = 0
    """Prompt tokens taken from the prefix cache instead, over all its starts."""
    adapter_bytes: int = 0
    """Adapter weights that were loaded into the arena because of it."""
    admitted_s: float | None = None
    """When the request first entered the batch."""
    first_token_s: float | None = None
    finished_s: float | None = None
    finish_reason: FinishReason | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def is_complete(self) -> bool:
        """True once it has ended by itself: at a stop, or at its length."""
        return self.finish_reason is FinishReason.STOP or self.finish_reason is FinishReason.LENGTH

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) of prompt followed by output."""
        prompt = self.prompt_token_ids
        if stop <= len(prompt):
            return prompt[start:stop]
        if start >= len(prompt):
            return self.output_token_ids[start - len(prompt) : stop - len(prompt)]
        return prompt[start:] + self.output_token_ids[: stop - len(prompt)]
