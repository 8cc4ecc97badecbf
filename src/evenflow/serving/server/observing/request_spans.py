"""From a request that has ended to the spans of its trace, as plain values. Knows no SDK.

    llm_request                    arrival to the last byte of the answer
    ├── register_adapter           its adapter was unknown and had to be read and registered
    ├── queue                      arrival to admission into the batch
    │   └── tokenize               of that, from text to token ids
    ├── prefill                    admission to the first token
    ├── load_adapter               copying its adapter into the arena
    └── decode                     first token to the last

A request for several completions has a span ``completion`` for each, and the last four below it. The names of attributes
are vLLM's (``vllm/tracing``) and those of OpenTelemetry's semantic conventions for generative AI, where the two differ both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evenflow.serving.client.messages import Usage
from evenflow.serving.server.observing.request_record import CallProgress, RequestRecord

ROOT = "llm_request"
"""vLLM's name."""
MOST_COMPLETIONS = 32
"""Completions of one request that have spans of their own."""
LONGEST_TEXT = 64 * 1024
"""Characters of a prompt or an answer that are recorded."""
CLIENT_GONE = "ClientGone"

Value = str | bool | int | float | Sequence[str]


@dataclass(frozen=True, slots=True)
class TracedSpan:
    """One span. Times are in seconds since 1970."""

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Value]
    parent: int | None
    """Place of its parent in the request's list of spans; None: the root."""
    is_error: bool = False
    message: str = ""
    """Of an error."""


def spans_of(record: RequestRecord, served_model: str) -> list[TracedSpan]:
    """The spans of one request to the model, root first; a parent stands before its children.

    ``served_model``: what the base model is called.
    """
    offset_s = record.began_unix_s - record.began_s
    spans = [
        TracedSpan(
            ROOT,
            record.began_unix_s,
            record.ended_s + offset_s,
            _root_attributes(record, served_model),
            None,
            record.status >= 500 or (record.outcome == "error" and record.error is not None),
            "" if record.error is None else type(record.error).__name__,
        )
    ]

    def add(name: str, start_s: float, end_s: float, attributes: Mapping[str, Value], parent: int = 0) -> int:
        start_s = max(start_s, record.began_s)  # of two clocks, one may be behind
        spans.append(TracedSpan(name, start_s + offset_s, max(start_s, end_s) + offset_s, attributes, parent))
        return len(spans) - 1

    if record.resolved_s is not None:
        add("register_adapter", *record.resolved_s, {"evenflow.adapter": record.adapter})
    call = record.call
    if call is None:
        return spans
    for index in range(min(call.num_completions, MOST_COMPLETIONS)):
        parent = 0
        if call.num_completions > 1:
            end_s = call.last_output_s.get(index, record.ended_s)
            parent = add("completion", call.arrival_s, end_s, _completion_attributes(call, record, index))
        for name, start_s, end_s, attributes in _phases(call, record, index):
            place = add(name, start_s, end_s, attributes, parent)
            if name == "queue" and index == 0 and record.tokenized_s is not None:
                add("tokenize", *record.tokenized_s, {"gen_ai.usage.input_tokens": call.num_prompt_tokens}, place)
    return spans


def _phases(call: CallProgress, record: RequestRecord, index: int) -> list[tuple[str, float, float, Mapping[str, Value]]]:
    """(name, start, end, attributes) of the parts of one completion."""
    usage = call.usages.get(index) or call.usages_so_far.get(index)
    if usage is None:  # it had no token: whether it waited or was computed is known to the engine alone
        return [("queue", call.arrival_s, record.ended_s, {"evenflow.is_admission_known": False})]
    admitted_s = call.arrival_s + usage.queue_s
    first_s = admitted_s + usage.prefill_s
    prefilled: dict[str, Value] = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
    phases: list[tuple[str, float, float, Mapping[str, Value]]] = [
        ("queue", call.arrival_s, admitted_s, {}),
        ("prefill", admitted_s, first_s, prefilled),
    ]
    if usage.adapter_load_s > 0:
        start_s = call.arrival_s + usage.adapter_load_at_s
        phases.append(("load_adapter", start_s, start_s + usage.adapter_load_s, {"evenflow.adapter": record.adapter}))
    if index in call.usages or index in call.last_output_s:
        end_s = first_s + usage.decode_s if index in call.usages else max(first_s, call.last_output_s[index])
        decoded: dict[str, Value] = {
            "gen_ai.usage.output_tokens": call.num_output_tokens.get(index, 0),
            "evenflow.num_preemptions": usage.num_preemptions,
            "evenflow.usage.recomputed_tokens": usage.recomputed_tokens,
        }
        phases.append(("decode", first_s, end_s, decoded))
    return phases


def _completion_attributes(call: CallProgress, record: RequestRecord, index: int) -> dict[str, Value]:
    made: dict[str, Value] = {
        "evenflow.completion": index,
        "gen_ai.response.finish_reasons": [call.outcomes.get(index, record.outcome)],
        "gen_ai.usage.output_tokens": call.num_output_tokens.get(index, 0),
    }
    if index in call.texts:
        made["gen_ai.output.messages"] = "".join(call.texts[index])[:LONGEST_TEXT]
    return made


def _root_attributes(record: RequestRecord, served_model: str) -> dict[str, Value]:
    made: dict[str, Value] = {
        "gen_ai.operation.name": record.operation,
        "gen_ai.provider.name": "evenflow",
        "http.request.method": record.method,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "evenflow.request_id": record.request_id,
        "evenflow.client": record.client,
        "evenflow.adapter": record.adapter,
        "evenflow.is_streamed": record.is_streamed,
    }
    if record.model:
        made |= {"gen_ai.request.model": record.model, "gen_ai.response.model": served_model}
    if record.error is not None:
        made["error.type"] = type(record.error).__name__
    elif record.outcome == "abort":
        made["error.type"] = CLIENT_GONE
    if record.call is not None:
        made |= _asked(record.call) | _measured(record.call, record)
    return made


def _asked(call: CallProgress) -> dict[str, Value]:
    """What the request asked for."""
    sampling = call.sampling
    made: dict[str, Value] = {
        "gen_ai.request.id": call.response_id,
        "gen_ai.response.id": call.response_id,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.n": call.num_completions,
        "gen_ai.request.choice.count": call.num_completions,
        "gen_ai.usage.num_sequences": call.num_completions,
    }
    optional: dict[str, Value | None] = {
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.top_k": sampling.top_k if sampling.top_k > 0 else None,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.presence_penalty": sampling.presence_penalty or None,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty or None,
    }
    return made | {name: value for name, value in optional.items() if value is not None}


def _measured(call: CallProgress, record: RequestRecord) -> dict[str, Value]:
    """What it took. Of several completions: the first token of any, and the longest of each time."""
    usages: list[Usage] = [*call.usages.values(), *(u for i, u in call.usages_so_far.items() if i not in call.usages)]
    outcomes = [call.outcomes.get(index, record.outcome) for index in range(min(call.num_completions, MOST_COMPLETIONS))]
    made: dict[str, Value] = {
        "gen_ai.response.finish_reasons": [outcome for outcome in outcomes if outcome],
        "gen_ai.latency.e2e": max(call.last_output_s.values(), default=record.ended_s) - call.arrival_s,
        **_both("prompt_tokens", "input_tokens", call.num_prompt_tokens),
        **_both("completion_tokens", "output_tokens", call.completion_tokens),
    }
    if call.first_output_s:
        made["gen_ai.latency.time_to_first_token"] = min(call.first_output_s.values()) - call.arrival_s
    if usages:
        made |= {
            "gen_ai.usage.cache_read.input_tokens": sum(usage.cached_tokens for usage in usages),
            "gen_ai.latency.time_in_queue": max(usage.queue_s for usage in usages),
            "gen_ai.latency.time_in_model_prefill": max(usage.prefill_s for usage in usages),
            "gen_ai.latency.time_in_model_decode": max(usage.decode_s for usage in usages),
            "gen_ai.latency.time_in_model_inference": max(usage.prefill_s + usage.decode_s for usage in usages),
            "evenflow.service": sum(usage.service for usage in usages),
        }
    if call.prompts:
        made["gen_ai.input.messages"] = "\n".join(call.prompts)[:LONGEST_TEXT]
    if call.texts and call.num_completions == 1:
        made["gen_ai.output.messages"] = "".join(call.texts[0])[:LONGEST_TEXT]
    return made


def _both(vllms: str, genais: str, value: int) -> dict[str, Value]:
    return {f"gen_ai.usage.{vllms}": value, f"gen_ai.usage.{genais}": value}


__all__ = ["CLIENT_GONE", "ROOT", "TracedSpan", "spans_of"]
