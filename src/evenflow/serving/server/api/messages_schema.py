"""Bodies, answers and events of POST /v1/messages: Anthropic's Messages API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from evenflow.serving.server.api.schema import (
    LONGEST_STOP,
    MAX_INT32,
    MOST_MESSAGES,
    REASONING_EFFORTS,
    ModelName,
    UserName,
)


class MessagesMetadata(msgspec.Struct):
    """Who the caller's own user is."""

    user_id: UserName | None = None


class OutputConfig(msgspec.Struct):
    """How much the model shall think, and what its answer must look like."""

    effort: Annotated[str, Meta(extra_json_schema={"enum": list(REASONING_EFFORTS)})] | None = None
    """For chat templates that read it."""
    format: dict[str, Any] | None = None
    """``{"type": "json_schema", "schema": ...}``."""


class MessagesRequest(msgspec.Struct, kw_only=True):
    """Body of POST /v1/messages, and of /v1/messages/count_tokens, where ``max_tokens`` is not needed."""

    model: ModelName | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: Annotated[list[Annotated[str, Meta(max_length=LONGEST_STOP)]], Meta(max_length=16)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    metadata: MessagesMetadata | None = None
    thinking: dict[str, Any] | None = None
    """Of type disabled: chat templates that read it are told not to think. Thoughts are told by --reasoning-parser."""
    output_config: OutputConfig | None = None


class Block(msgspec.Struct):
    """A part of an answer: text, thinking or tool_use."""

    type: str
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    input: Any = UNSET


class MessagesUsage(msgspec.Struct):
    """Tokens of one message."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class MessageBody(msgspec.Struct):
    """Answer of POST /v1/messages."""

    id: str
    model: str
    content: list[Block]
    usage: MessagesUsage
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    stop_reason: str | None = None
    """end_turn | max_tokens | stop_sequence | tool_use."""
    stop_sequence: str | None = None


class MessageDelta(msgspec.Struct):
    """What an event adds: text_delta, thinking_delta or input_json_delta; at the end the stop's reason."""

    type: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    partial_json: str | UnsetType = UNSET
    stop_reason: str | UnsetType = UNSET
    stop_sequence: str | UnsetType | None = UNSET


class MessagesError(msgspec.Struct):
    """Anthropic's error."""

    type: str
    message: str


class MessagesEvent(msgspec.Struct):
    """One event of a stream; which fields it has depends on its type."""

    type: str
    message: MessageBody | UnsetType = UNSET
    index: int | UnsetType = UNSET
    content_block: Block | UnsetType = UNSET
    delta: MessageDelta | UnsetType = UNSET
    usage: MessagesUsage | UnsetType = UNSET
    error: MessagesError | UnsetType = UNSET


class TokenCount(msgspec.Struct):
    """Answer of POST /v1/messages/count_tokens."""

    input_tokens: int
