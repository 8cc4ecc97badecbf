"""What is known of one HTTP request while it is answered, for those who tell of it at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from evenflow.serving.client.messages import Usage
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.server.observing.trace_context import TraceContext

_KEY = "evenflow.record"
"""Of an ASGI scope."""


@dataclass(slots=True)
class CallProgress:
    """The completions of one request, by number. Written by the call as its outputs come, read when it has ended."""

    response_id: str
    sampling: SamplingParams
    num_completions: int
    arrival_s: float
    """Like all moments here, of the server's clock."""
    num_prompt_tokens: int = 0
    """Of all prompts."""
    submitted_s: float | None = None
    """When the engine was asked; None: it never was."""
    usages: dict[int, Usage] = field(default_factory=dict)
    """Of completions that came to their end."""
    usages_so_far: dict[int, Usage] = field(default_factory=dict)
    """What went before the first token, of those that have had one."""
    outcomes: dict[int, str] = field(default_factory=dict)
    num_output_tokens: dict[int, int] = field(default_factory=dict)
    first_output_s: dict[int, float] = field(default_factory=dict)
    last_output_s: dict[int, float] = field(default_factory=dict)
    """By completion that has had a token: when it had its last one."""
    prompts: list[str] = field(default_factory=list)
    """Kept only where texts are recorded, as are ``texts``."""
    texts: dict[int, list[str]] = field(default_factory=dict)

    @property
    def completion_tokens(self) -> int:
        """So far, of all completions."""
        counts = {**self.num_output_tokens, **{index: usage.completion_tokens for index, usage in self.usages.items()}}
        return sum(counts.values())


@dataclass(slots=True)
class RequestRecord:
    """One HTTP request. The server's outermost layer makes and ends it; whoever answers it writes down what it learns."""

    request_id: str
    """The x-request-id of its answer."""
    method: str
    path: str
    began_s: float
    """Of the server's clock, as every moment here."""
    began_unix_s: float
    """The same moment, in seconds since 1970."""
    trace: TraceContext | None = None
    operation: str = ""
    """GenAI's name of what is asked of the model, e.g. chat; empty: nothing is."""
    client: str = ""
    """Who pays, once that is known."""
    model: str = ""
    adapter: str = ""
    """As in the accounts; empty: the base model."""
    is_streamed: bool = False
    resolved_s: tuple[float, float] | None = None
    """When it was looked up what the model's name means, if an adapter had to be registered for it."""
    tokenized_s: tuple[float, float] | None = None
    call: CallProgress | None = None
    status: int = 0
    """0: the caller had gone before there was one."""
    error: BaseException | None = None
    """What it ended of."""
    outcome: str = ""
    """Of completions that did not come to their end: abort (the caller had gone), or error."""
    ended_s: float = 0.0


class RequestObserver(Protocol):
    """Told of every HTTP request, in the event loop: it must not wait."""

    def began(self, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """A request has come, of which nothing but its headers is known."""
        ...

    def ended(self, record: RequestRecord) -> None:
        """The last byte of its answer is on its way, or its caller has gone."""
        ...

    def close(self) -> None:
        """The server ends. Called on another thread; it may wait for a moment."""
        ...


def put_record(scope: dict[str, Any] | Any, record: RequestRecord) -> None:
    """Let whoever answers the request find its record."""
    scope[_KEY] = record


def record_of(scope: Mapping[str, Any]) -> RequestRecord:
    """The record of the request that ``scope`` belongs to; without one, a record that nobody reads."""
    found = scope.get(_KEY)
    return found if isinstance(found, RequestRecord) else RequestRecord("", "", "", 0.0, 0.0)


__all__ = ["CallProgress", "RequestObserver", "RequestRecord", "put_record", "record_of"]
