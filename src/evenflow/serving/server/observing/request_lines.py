"""One line of the log for each HTTP request that has ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from evenflow.base.json_lines import FIELDS
from evenflow.serving.server.observing.request_record import CallProgress, RequestRecord
from evenflow.serving.server.observing.request_spans import CLIENT_GONE, LONGEST_TEXT

log = logging.getLogger("evenflow.requests")

PROBES = ("/health", "/health/ready", "/health/live", "/ping", "/ready", "/metrics", "/version", "/load")
"""What watchers ask every few seconds: told at the level debug."""
LONGEST_PATH = 200


class RequestLines:
    """A ``RequestObserver``. No line holds what was asked or answered, unless the texts of requests are recorded."""

    def began(self, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """Nothing is known yet."""

    def ended(self, record: RequestRecord) -> None:
        """Write the line."""
        level = logging.DEBUG if record.path in PROBES and record.status < 400 else logging.INFO
        if not log.isEnabledFor(level):
            return
        fields = fields_of(record)
        parts = [f"{record.method} {record.path[:LONGEST_PATH]} {record.status or CLIENT_GONE} in {fields['total_s']:.3f} s"]
        if record.client:
            parts.append(f"client {record.client}")
        if record.adapter:
            parts.append(f"adapter {record.adapter}")
        if record.call is not None:
            parts.append(f"{fields['prompt_tokens']} and {fields['completion_tokens']} tokens")
        if "error" in fields:
            parts.append(str(fields["error"]))
        log.log(level, "%s", ", ".join([*parts, f"id {record.request_id}"]), extra={FIELDS: fields})

    def close(self) -> None:
        """Nothing is open."""


def fields_of(record: RequestRecord) -> dict[str, object]:
    """What is told of a request. Times are in seconds."""
    fields: dict[str, object] = {
        "request_id": record.request_id,
        "method": record.method,
        "path": record.path[:LONGEST_PATH],
        "status": record.status,
        "total_s": round(record.ended_s - record.began_s, 6),
    }
    if record.trace is not None:
        fields |= {"trace_id": f"{record.trace.trace_id:032x}", "span_id": f"{record.trace.span_id:016x}"}
    if record.error is not None:
        fields["error"] = type(record.error).__name__
    elif record.outcome == "abort" or not record.status:
        fields["error"] = CLIENT_GONE
    if record.client:
        fields["client"] = record.client
    if record.model:
        fields |= {"model": record.model, "adapter": record.adapter, "is_streamed": record.is_streamed}
    if record.call is not None:
        fields |= _fields_of_call(record.call, record.outcome)
    return fields


def _fields_of_call(call: CallProgress, outcome: str) -> dict[str, object]:
    usages = [*call.usages.values(), *(u for i, u in call.usages_so_far.items() if i not in call.usages)]
    fields: dict[str, object] = {
        "response_id": call.response_id,
        "completions": call.num_completions,
        "prompt_tokens": call.num_prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "finish_reasons": sorted({call.outcomes.get(index, outcome) for index in range(call.num_completions)} - {""}),
    }
    if usages:
        fields |= {
            "cached_tokens": sum(usage.cached_tokens for usage in usages),
            "service": round(sum(usage.service for usage in usages), 6),
            "queue_s": round(max(usage.queue_s for usage in usages), 6),
            "prefill_s": round(max(usage.prefill_s for usage in usages), 6),
            "decode_s": round(max(usage.decode_s for usage in usages), 6),
        }
    if call.first_output_s:
        fields["first_token_s"] = round(min(call.first_output_s.values()) - call.arrival_s, 6)
    if call.prompts:
        fields["prompts"] = [prompt[:LONGEST_TEXT] for prompt in call.prompts]
    if call.texts:
        fields["answers"] = ["".join(parts)[:LONGEST_TEXT] for _, parts in sorted(call.texts.items())]
    return fields


__all__ = ["RequestLines", "fields_of"]
