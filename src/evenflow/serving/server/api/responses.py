"""Response bodies, encoded once with msgspec; the same types document the API (openapi.py).

A field that is UNSET is left out; one that is None is written as null, as OpenAI does.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

FinishReason = str
"""stop | length | abort."""


class PromptTokensDetails(msgspec.Struct):
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0


class Timings(msgspec.Struct):
    """Seconds that the slowest completion of the request spent waiting, on its prompt and on its output."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class UsageBody(msgspec.Struct):
    """Tokens and time of one HTTP request. A prompt counts once, however many completions it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    evenflow: Timings


class TopLogprob(msgspec.Struct):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """Log-probability of a token that was chosen."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]
    rank: int | None = None
    """1 for the likeliest token of the vocabulary, 2 for the next one, ..."""


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of a message's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptLogprob(msgspec.Struct):
    """vLLM's entry for one candidate at one place of the prompt."""

    logprob: float
    decoded_token: str
    rank: int | None = None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By place: token id (as a string) to its log-probability; null for the first token."""


class CalledFunction(msgspec.Struct):
    """A function that the model calls; ``arguments`` is JSON, in a stream its next characters."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class ToolCall(msgspec.Struct):
    """One call of a tool, whole or (in a stream) what it gained."""

    function: CalledFunction
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AnswerMessage(msgspec.Struct):
    """What the model said."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] = []
    reasoning_content: str | None = None


class ChatChoice(msgspec.Struct):
    """One completion of a chat."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletion(msgspec.Struct):
    """Answer of POST /v1/chat/completions without ``stream``."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    object: Literal["chat.completion"] = "chat.completion"
    service_tier: None = None
    system_fingerprint: None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    kv_transfer_params: None = None


class Delta(msgspec.Struct):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    """One completion's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct):
    """One event of a chat stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: UsageBody | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    """On each choice's first chunk, if ``return_token_ids`` asks for it."""


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a completion, place by place; null where nothing comes before."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []
    """Where the token starts in the text that is returned, in characters."""


class CompletionChoice(msgspec.Struct):
    """One completion of a text, whole or (in a stream) what it gained."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET


class Completion(msgspec.Struct):
    """Answer of POST /v1/completions, and each event of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: UsageBody | UnsetType | None = UNSET
    service_tier: UnsetType | None = UNSET
    system_fingerprint: UnsetType | None = UNSET


class Load(msgspec.Struct):
    """Answer of GET /load."""

    server_load: int


class TokenizerInfo(msgspec.Struct):
    """Answer of GET /tokenizer_info: what tokenizer_config.json says, and these two."""

    tokenizer_class: str
    chat_template: str | None


class ModelCard(msgspec.Struct):
    """The base model, or an adapter (then ``parent`` is the base model's name)."""

    id: str
    created: int
    root: str
    """The name again, or an adapter's digest; never a path."""
    parent: str | None = None
    max_model_len: int | None = None
    object: Literal["model"] = "model"
    owned_by: str = "evenflow"


class ModelList(msgspec.Struct):
    """Answer of GET /v1/models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class AdapterCard(msgspec.Struct):
    """One adapter as a platform engineer wants to see it."""

    name: str
    digest: str
    rank: int
    bytes: int
    num_pages: int
    state: str
    """disk | host (its rows are open and read ahead) | resident | draining (unloaded or replaced, still used by
    running requests)."""
    pinned: bool
    in_flight: int
    num_loads: int
    target_modules: list[str]
    base_model: str | None = None
    """What the adapter says it was trained for."""
    warning: str | None = None
    """If that is not the model that is served."""
    object: Literal["adapter"] = "adapter"


class PassedOver(msgspec.Struct):
    """Something in the adapter folder that is not served."""

    name: str
    reason: str


class AdapterList(msgspec.Struct):
    """Answer of GET /v1/adapters."""

    data: list[AdapterCard]
    passed_over: list[PassedOver] = []
    """Of the adapter folder."""
    object: Literal["list"] = "list"


class SGLangAnswer(msgspec.Struct):
    """SGLang's answer of /load_lora_adapter and /unload_lora_adapter."""

    success: bool
    error_message: str
    loaded_adapters: dict[str, str]
    """Name to digest (SGLang shows paths; clients should not see those)."""


class TokenizeResponse(msgspec.Struct):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(msgspec.Struct):
    """Answer of POST /detokenize."""

    prompt: str


class Health(msgspec.Struct):
    """Answer of the probes."""

    status: str


class Version(msgspec.Struct):
    """Answer of GET /version."""

    version: str
