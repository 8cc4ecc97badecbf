"""What one way of asking the model differs in from another: the seam of the inference endpoints.

An endpoint is a View: the shape of a question and of its answer, whole or as a stream. Everything else (who asks, for
which model, admission, tokenising, the engine, disconnects, accounts, errors) is answering.py's, the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec

from evenflow.access.identity import Client
from evenflow.serving.client.messages import Logprobs, RequestOutput
from evenflow.serving.server.access.asked import Asked
from evenflow.serving.server.api.generation import Call, RunningCall
from evenflow.serving.server.api.state import ServerState

B = TypeVar("B", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for which weights, since when."""

    client: Client
    adapter: str | None
    model: str
    """The name that was asked for; it stands in the answer."""
    arrival_s: float
    """time.monotonic()."""
    slo_ttft_s: float | None = None
    """Within which the first token is wanted."""


@dataclass(slots=True)
class Choice:
    """Everything that one completion has said."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs | None] | None = None
    finish_reason: str = "stop"
    stop_reason: str | int | None = None


class EventWriter(Protocol):
    """Writes one stream: the bytes of its events, in their order. An empty answer means no event."""

    wants_tokens: bool
    """True: a token that adds no text yet has an event all the same, because its id or log-probability is wanted."""

    def begin(self) -> bytes:
        """What goes before the first output; called once the first output is there."""
        ...

    def gained(self, index: int, output: RequestOutput, is_first: bool) -> bytes:
        """What completion ``index`` gained; ``is_first``: it is its first output."""
        ...

    def end(self) -> bytes:
        """What follows when all completions have ended."""
        ...

    def failed(self, error: Exception) -> bytes:
        """The last event of a stream that breaks off."""
        ...


class View(Protocol[B]):
    """One endpoint's shape of question and answer. Stateless, but for the server that it was made for."""

    @property
    def path(self) -> str:
        """Of the route."""
        ...

    @property
    def body_type(self) -> type[B]:
        """What a body is decoded into."""
        ...

    @property
    def answer_type(self) -> type[msgspec.Struct]:
        """What a whole answer is encoded from."""
        ...

    @property
    def event_type(self) -> type[msgspec.Struct]:
        """What a stream's events hold."""
        ...

    def asked(self, body: B) -> Asked:
        """Who and what the body names. Raises InvalidRequest for fields that do not go together."""
        ...

    def call(self, state: ServerState, body: B, caller: Caller) -> Call:
        """The call that the body asks for. Raises InvalidRequest, naming the field."""
        ...

    def answer(self, running: RunningCall, body: B, choices: Sequence[Choice]) -> msgspec.Struct:
        """The whole answer; ``choices`` in the order of the completions."""
        ...

    def writer(self, running: RunningCall, body: B) -> EventWriter:
        """A writer for one stream."""
        ...
