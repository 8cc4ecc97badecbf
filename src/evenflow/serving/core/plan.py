"""What goes down to the tensors and what comes up: one frozen StepPlan, one StepResult.

Everything an executor needs for a step is in the plan; nothing below it asks back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evenflow.serving.core.request import AdapterDigest, RequestId
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.core.structured import TokenMask

NO_ADAPTER_SLOT = -1


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How the token after a sequence's last row is chosen.

    ``prompt_token_ids`` and ``output_token_ids`` are the request's own lists, read only while the
    step runs (penalties, seeds); ``len(output_token_ids)`` is the index of the token to sample.
    """

    sampling: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    salt: int
    """Seed for a request that names none; different for every request."""
    mask: TokenMask | None = None
    """Which tokens are allowed; None: all."""


@dataclass(frozen=True, slots=True)
class PlannedSequence:
    """The tokens of one request that this step computes.

    ``pages`` is the page table from position 0 up to and including the page of the last token of
    this step. ``sample`` is None for a chunk that is not the last of what is known.
    """

    request_id: RequestId
    token_ids: Sequence[int]
    start: int
    """Position of token_ids[0]."""
    pages: Sequence[int]
    adapter_slot: int
    """Slot of the adapter in the LoRA backend, or NO_ADAPTER_SLOT."""
    sample: SampleSpec | None
    prompt_logprobs: int | None = None
    """If not None: log-probabilities of the prompt tokens that follow this step's rows are wanted."""
    prompt_token_ids: Sequence[int] | None = None
    """The whole prompt; None unless ``prompt_logprobs`` is given."""

    @property
    def num_tokens(self) -> int:
        """Rows of this sequence in the step."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """Copy an adapter's rows from the host into its pages: page ``first`` up to, not including, ``stop`` of them.

    Before the step computes anything; a prefetch at any time until the step ends. The pages before ``first`` were
    copied by earlier steps; once ``stop`` is ``len(pages)`` the slot may be used, by this step unless it is a prefetch.
    """

    digest: AdapterDigest
    slot: int
    pages: Sequence[int]
    """All pages of the adapter, in order."""
    first: int = 0
    stop: int = -1
    """One past the last page to copy. -1 stands for all pages and is replaced by their number when the load is made."""
    is_prefetch: bool = False
    """No sequence of this step needs it."""

    def __post_init__(self) -> None:
        if self.stop < 0:
            object.__setattr__(self, "stop", len(self.pages))

    @property
    def is_last(self) -> bool:
        """After this one the adapter is complete."""
        return self.stop == len(self.pages)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, complete. ``sequences`` is never empty."""

    step: int
    sequences: tuple[PlannedSequence, ...]
    loads: tuple[AdapterLoad, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Rows of the whole batch."""
        return sum(len(s.token_ids) for s in self.sequences)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of one token and of the likeliest ones: (token id, logprob), best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    token_rank: int = 0
    """Place of the token among all tokens of the vocabulary, 1 for the likeliest; 0: not computed."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The next token of one request. ``error`` says why there is none: its logits were not finite, or nothing is allowed."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    error_type: str = "EvenFlowError"
    """Class in evenflow.base.errors, if ``error`` is set."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced: a token for each sequence that had a ``sample``."""

    step: int
    tokens: Mapping[RequestId, SampledToken]
    prompt_logprobs: Mapping[RequestId, Sequence[TokenLogprobs]]
    duration_s: float = 0.0
    """Seconds that the step took on the executor; of the virtual clock in a simulation."""
    failed_loads: Mapping[AdapterDigest, str] = field(default_factory=dict)
    """Adapters whose factor rows could not be copied, and why. Tokens that were computed with them must be thrown away."""
    loading_s: float = 0.0
    """Seconds of ``duration_s`` that copying adapters took before anything was computed."""
