"""What the books read of a vLLM request, and how a policy sees it. Imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

ANONYMOUS = "anonymous"
"""The client of requests that name none."""

CLIENT_FIELD = "evenflow_client"
"""The entry of ``SamplingParams.extra_args`` that names the client. The middleware sets it; callers cannot."""


class EngineRequest(Protocol):
    """The part of ``vllm.v1.request.Request`` that is read here. Never written to."""

    request_id: str
    sampling_params: Any
    lora_request: Any
    num_prompt_tokens: int
    max_tokens: int
    num_computed_tokens: int
    num_stale_output_tokens: int
    resumable: bool
    status: Any

    @property
    def num_output_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Statuses:
    """The members of vLLM's ``RequestStatus`` that the books tell apart."""

    running: Any
    loading: Any
    """Its KV cache is on its way from elsewhere: it holds memory, so it counts as started."""
    ready: Collection[Any]
    """It waits for nothing but its turn."""
    complete: Collection[Any]
    """Ended by itself."""


def client_of(request: EngineRequest) -> str:
    """Who pays for the request: what the middleware or an offline caller wrote into ``extra_args``."""
    extra: Mapping[str, Any] | None = getattr(request.sampling_params, "extra_args", None)
    name = extra.get(CLIENT_FIELD) if extra else None
    return name if isinstance(name, str) and name else ANONYMOUS


class RequestView:
    """A vLLM request as ``evenflow.fairness.schedulable.Schedulable``. Its client and adapter never change."""

    __slots__ = ("adapter", "arrival_s", "client_id", "is_complete", "request", "request_id")

    known_output_tokens: int | None = None

    def __init__(self, request: EngineRequest, client_id: str, arrival_s: float) -> None:
        self.request = request
        self.request_id = request.request_id
        self.client_id = client_id
        lora = request.lora_request
        self.adapter: str | None = None if lora is None else lora.lora_name
        self.arrival_s = arrival_s
        """On the clock of the books, which is not vLLM's."""
        self.is_complete = False

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.request.num_prompt_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced."""
        return self.request.num_output_tokens

    @property
    def max_output_tokens(self) -> int:
        """The most tokens that it may produce."""
        return self.request.max_tokens
