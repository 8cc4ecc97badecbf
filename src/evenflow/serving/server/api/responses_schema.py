"""Bodies, answers and events of POST /v1/responses: OpenAI's Responses API without a memory."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from evenflow.serving.server.api.schema import (
    MAX_INT32,
    MAX_SLO_S,
    MOST_MESSAGES,
    REASONING_EFFORTS,
    ModelName,
    TemplateVariables,
    UserName,
)
from evenflow.serving.server.api.structured_fields import ResponseFormat


class TextOptions(msgspec.Struct, kw_only=True):
    """How the text of the answer is formed."""

    format: dict[str, Any] | None = None
    """{"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", "name": ..., "schema": {...}}."""
    verbosity: str | None = None
    """Taken and not needed."""


class ReasoningOptions(msgspec.Struct):
    """How much the model shall think."""

    effort: Annotated[str, Meta(extra_json_schema={"enum": list(REASONING_EFFORTS)})] | None = None
    """For chat templates that read it."""
    summary: str | None = None
    """Taken; thoughts are told whole."""
    generate_summary: str | None = None
    """The same, by its older name."""


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """Body of POST /v1/responses."""

    model: ModelName | None = None
    input: str | Annotated[list[dict[str, Any]], Meta(max_length=MOST_MESSAGES)]
    """A text, or items: messages, function calls and their outputs."""
    instructions: str | None = None
    """Goes before everything, as the system's message."""
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    store: bool | None = None
    """Nothing is kept: true is refused."""
    previous_response_id: str | None = None
    """Nothing was kept: refused."""
    background: bool | None = None
    truncation: str | None = None
    include: list[str] | None = None
    """Taken; what is there is always included."""
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, str] | None = None
    user: UserName | None = None
    safety_identifier: UserName | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    chat_template_kwargs: TemplateVariables | None = None
    slo_ttft: Annotated[float, Meta(gt=0, le=MAX_SLO_S)] | None = None


class TextContent(msgspec.Struct):
    """A part of a message that the model wrote, or of its thoughts."""

    text: str
    type: str = "output_text"
    annotations: list[Any] | UnsetType = UNSET
    logprobs: list[Any] | UnsetType = UNSET


class OutputItem(msgspec.Struct):
    """A message, a function call or thoughts."""

    type: Literal["message", "function_call", "reasoning"]
    id: str
    status: str = "completed"
    role: str | UnsetType = UNSET
    content: list[TextContent] | UnsetType = UNSET
    summary: list[Any] | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class InputDetails(msgspec.Struct):
    """Where the input's tokens came from."""

    cached_tokens: int = 0


class OutputDetails(msgspec.Struct):
    """Tokens of thoughts are not counted apart: 0."""

    reasoning_tokens: int = 0


class ResponsesUsage(msgspec.Struct):
    """Tokens of one response."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class ResponseBody(msgspec.Struct):
    """Answer of POST /v1/responses, and what its events show of it."""

    id: str
    created_at: int
    model: str
    status: str = "in_progress"
    output: list[OutputItem] = []
    object: Literal["response"] = "response"
    error: None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    temperature: float | None = None
    top_p: float | None = None
    text: dict[str, Any] = {}
    tool_choice: Any = "auto"
    tools: list[Any] = []
    truncation: str = "disabled"
    store: bool = False
    background: bool = False
    usage: ResponsesUsage | None = None
    user: str | None = None


class ResponsesEvent(msgspec.Struct):
    """One event of a stream; which fields it has depends on its type."""

    type: str
    sequence_number: int
    response: ResponseBody | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: TextContent | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[Any] | UnsetType = UNSET
    message: str | UnsetType = UNSET
    code: str | UnsetType | None = UNSET
    param: str | UnsetType | None = UNSET


def response_format_of(given: dict[str, Any] | None) -> ResponseFormat | None:
    """Return ``text.format`` as chat completions write it, where the schema stands one level deeper."""
    if given is None:
        return None
    if given.get("type") != "json_schema":
        return msgspec.convert(given, ResponseFormat)
    inner = {key: value for key, value in given.items() if key != "type"}
    return msgspec.convert({"type": "json_schema", "json_schema": inner}, ResponseFormat)
