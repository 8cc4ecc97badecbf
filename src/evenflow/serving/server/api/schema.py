"""Request bodies: what OpenAI's and vLLM's clients may send, strictly typed.

The same types are decoded (body_parsing.py) and documented (openapi.py). ``null`` means "not given" wherever
OpenAI's client may send it. Ranges are checked by SamplingParams, which names the field. Every text and every list has
a largest length, so that no request costs more than its kind should: the numbers are at the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.sampling import (
    LONGEST_BAD_WORD,
    MAX_LOGPROBS,
    MOST_ALLOWED_TOKENS,
    MOST_BAD_WORDS,
    WHOLE_VOCABULARY,
)
from evenflow.serving.server.access.asked import Asked
from evenflow.serving.server.api.structured_fields import StructuredFields

MAX_INT64 = (1 << 63) - 1
MAX_INT32 = (1 << 31) - 1
MAX_SLO_S = 3600.0
SLO_HEADER = "x-llm-d-slo-ttft-ms"
"""llm-d's header for the same as ``slo_ttft``, in milliseconds; the body goes before it."""
MOST_MESSAGES = 16_384
"""In one conversation."""
MOST_PARTS = 4096
"""Of one message's content."""
LONGEST_STOP = 256
"""Characters of one stop string."""
MOST_STOP_TOKENS = 1024
MOST_BIASES = 1024
"""Tokens with a logit_bias."""
MOST_TEMPLATE_VARIABLES = 64
LONGEST_MODEL = 8192
LONGEST_USER = 1024
LONGEST_NAME = 512
"""Characters of a message's ``name``, and of an adapter's."""
LONGEST_PATH = 4096
MOST_DETOKENIZED = 1 << 17
"""Token ids in one body of /detokenize."""
MOST_DOCUMENTS = 256
TRUNCATION_SIDES = ("left", "right")
REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
ROLES = ("system", "developer", "user", "assistant", "tool")
"""Those that every template gets; others are taken where the model's template knows them."""

Seed = Annotated[int, Meta(ge=-MAX_INT64 - 1, le=MAX_INT64)]
Count = Annotated[int, Meta(ge=0, le=MAX_INT32)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
Stop = Annotated[str, Meta(max_length=LONGEST_STOP)]
ModelName = Annotated[str, Meta(max_length=LONGEST_MODEL)]
UserName = Annotated[str, Meta(max_length=LONGEST_USER)]
NumLogprobs = Annotated[int, Meta(ge=WHOLE_VOCABULARY, le=MAX_LOGPROBS)]
BadWord = Annotated[str, Meta(min_length=1, max_length=LONGEST_BAD_WORD)]
Document = dict[str, Any]
AdapterName = Annotated[str, Meta(max_length=LONGEST_NAME)]
FolderPath = Annotated[str, Meta(max_length=LONGEST_PATH)]
TemplateVariables = Annotated[dict[str, Any], Meta(max_length=MOST_TEMPLATE_VARIABLES)]


class StreamOptions(msgspec.Struct):
    """How a stream ends."""

    include_usage: bool | None = None
    """One more chunk before [DONE], without choices, with the usage."""
    include_obfuscation: bool | None = None
    """Accepted and ignored: nothing is padded here."""
    continuous_usage_stats: bool | None = None
    """vLLM's: every chunk has the usage so far."""


class SamplingFields(StructuredFields, kw_only=True):
    """Fields that chat and text completions share."""

    model: ModelName | None = None
    """The base model's name, or an adapter's; without it the base model."""
    lora_path: ModelName | None = None
    """SGLang's: the name of an adapter, where ``model`` is the base model."""
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None
    min_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MOST_BIASES)] | None = None
    """Token id, as a string, to what is added to its logit."""
    seed: Seed | None = None
    """The same seed gives the same text, whatever else runs. With n > 1 choice i uses seed + i."""
    stop: Stop | list[Stop] | None = None
    """At most 16 strings."""
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MOST_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=MOST_ALLOWED_TOKENS)] | None = None
    """vLLM's: no other tokens are chosen."""
    bad_words: Annotated[list[BadWord], Meta(max_length=MOST_BAD_WORDS)] | None = None
    """vLLM's: words that the answer does not hold, as the tokenizer writes them."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    """vLLM's: use so many tokens of the prompt at most; -1: as many as fit beside the answer that is asked for."""
    truncation_side: Annotated[str, Meta(extra_json_schema={"enum": list(TRUNCATION_SIDES)})] | None = None
    """What truncate_prompt_tokens cuts away: left (the default: the last tokens stay) or right."""
    prompt_logprobs: NumLogprobs | None = None
    """vLLM's: log-probabilities of the prompt's tokens; -1: of all tokens; not with ``stream``."""
    return_token_ids: bool | None = None
    """vLLM's: token ids beside the text."""
    return_tokens_as_token_ids: bool | None = None
    """vLLM's: log-probabilities name tokens as ``token_id:7``, so that tokens that are no text can be told apart."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    slo_ttft: Annotated[float, Meta(gt=0, le=MAX_SLO_S)] | None = None
    """EvenFlow's: seconds from arrival within which the first token is wanted, else 503 as soon as that cannot be."""
    user: UserName | None = None
    safety_identifier: UserName | None = None
    """Who the caller's own user is. Without API keys this, or ``user``, is the client if no header says otherwise."""
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    """vLLM's: only requests with the same salt share cached prefixes, so that timing tells others nothing."""


class TextPart(msgspec.Struct):
    """One part of a message's content; text is the only kind that is served."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text"]})]
    text: str | None = None


class ChatMessage(msgspec.Struct):
    """One turn of a conversation."""

    role: Annotated[str, Meta(max_length=LONGEST_NAME)]
    """system, developer, user, assistant or tool; others where the model's template knows them."""
    content: str | Annotated[list[TextPart], Meta(max_length=MOST_PARTS)] | None = None
    name: Annotated[str, Meta(max_length=LONGEST_NAME)] | None = None
    tool_calls: Annotated[list[dict[str, Any]], Meta(max_length=MOST_PARTS)] | None = None
    """Of an assistant: the calls that it made."""
    tool_call_id: Annotated[str, Meta(max_length=LONGEST_NAME)] | None = None
    """Of a tool: the call that ``content`` is the result of."""
    reasoning_content: str | None = None
    """Of an assistant: what it thought; templates that know it get it."""


class ChatCompletionRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None
    """OpenAI's newer name for max_tokens; without either, up to the model's context."""
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    """With ``logprobs``; -1: of all tokens."""
    add_generation_prompt: bool | None = None
    """True (the default): the answer is a new message of the assistant's."""
    continue_final_message: bool | None = None
    """vLLM's: the answer continues the last message, which stays open; not together with add_generation_prompt true."""
    echo: bool | None = None
    """vLLM's: the answer begins with the last message, if that is the assistant's."""
    add_special_tokens: bool | None = None
    """vLLM's: the tokenizer adds its special tokens to what the template writes; false by default."""
    documents: Annotated[list[Document], Meta(max_length=MOST_DOCUMENTS)] | None = None
    """For templates that know documents: objects with ``title`` and ``text``."""
    chat_template_kwargs: TemplateVariables | None = None
    """Variables for the model's chat template, e.g. {"enable_thinking": false}."""
    reasoning_effort: Annotated[str, Meta(extra_json_schema={"enum": list(REASONING_EFFORTS)})] | None = None
    """How much the model shall think, for chat templates that read ``reasoning_effort`` or ``enable_thinking``."""
    tools: list[Any] | None = None
    """Functions that the model may call."""
    tool_choice: str | dict[str, Any] | None = None
    """none, auto (the default with tools), required, or one function by name."""
    parallel_tool_calls: bool | None = None
    """False: one call at most."""


class CompletionRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    """A text, token ids, or a list of either: one completion each (times n)."""
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None
    """16 if it is left out; 0 together with ``echo`` scores the prompt and says nothing."""
    echo: bool | None = None
    """The prompt comes back before its completion, with its log-probabilities if they are asked for."""
    logprobs: NumLogprobs | None = None
    add_special_tokens: bool | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of POST /tokenize: a prompt, or messages."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(max_length=MOST_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    """Default: true for a prompt, false for messages (their template writes them)."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """The last message stays open; not together with add_generation_prompt true."""
    tools: list[Any] | None = None
    """Functions that the template shows to the model."""
    chat_template_kwargs: TemplateVariables | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of POST /detokenize."""

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=MOST_DETOKENIZED)]


class LoadLoraAdapterRequest(msgspec.Struct, kw_only=True):
    """vLLM's body of POST /v1/load_lora_adapter."""

    lora_name: AdapterName | None = None
    lora_path: FolderPath | None = None
    load_inplace: bool | None = None
    """True: if the name is taken, new requests get the new weights and running ones keep the old."""
    pinned: bool | None = None
    """SGLang's: keep it in the arena."""


class UnloadLoraAdapterRequest(msgspec.Struct, kw_only=True):
    """vLLM's body of POST /v1/unload_lora_adapter."""

    lora_name: AdapterName | None = None
    purge_cache: bool = False
    """Ours: when it is unloaded, delete its converted rows from the adapter cache too."""


class CreateAdapterRequest(msgspec.Struct, kw_only=True):
    """SageMaker's body of POST /adapters."""

    name: AdapterName
    src: FolderPath
    """Folder of the adapter."""


def asked_of(body: SamplingFields) -> Asked:
    """What a body of OpenAI's kind says of itself. Raises InvalidRequest for fields that do not go together."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is given without stream; allowed with stream true", "stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs is given with stream; allowed without stream", "prompt_logprobs")
    named = ("safety_identifier", body.safety_identifier) if body.safety_identifier else ("user", body.user or "")
    return Asked(body.model, body.lora_path, named, bool(body.stream), body.slo_ttft)


def slo_of_headers(headers: Mapping[str, str]) -> float | None:
    """Seconds within which the first token is wanted, from llm-d's header. Raises InvalidRequest."""
    text = headers.get(SLO_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text) / 1000.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_SLO_S:
        raise InvalidRequest(
            f"the header {SLO_HEADER} is {text[:40]!r}; allowed: milliseconds above 0, to {MAX_SLO_S * 1000:g}", SLO_HEADER
        )
    return seconds
