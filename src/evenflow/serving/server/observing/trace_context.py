"""W3C's trace context: which trace a request belongs to, read from its headers and sent on with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
LONGEST_STATE = 512
"""Characters of a tracestate; W3C asks for at least so many to be passed on. A longer one is left out, whole."""
_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class CallerContext:
    """What the caller's headers say."""

    trace_id: int
    """128 bits, not 0."""
    span_id: int
    """Of the caller's own span: 64 bits, not 0."""
    is_sampled: bool
    """The caller keeps its part of the trace."""
    state: str = ""
    """Tracestate, as it came."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One request's place in a trace: what its root span will be called, before it is made."""

    trace_id: int
    span_id: int
    """Of the request's root span."""
    is_sampled: bool
    """False: no span of it is sent, and whoever it is passed on to keeps none either."""
    caller: CallerContext | None = None

    @property
    def traceparent(self) -> str:
        """The header to send on."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.is_sampled):02x}"


def read_context(headers: Mapping[str, str]) -> CallerContext | None:
    """The context that headers carry; None if they carry none, or a broken one, which starts a new trace as W3C asks."""
    found = _HEADER.fullmatch(headers.get(TRACEPARENT, "").strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = headers.get(TRACESTATE, "").strip()
    kept = state if len(state) <= LONGEST_STATE and state.isprintable() else ""
    return CallerContext(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED), kept)


__all__ = ["TRACEPARENT", "TRACESTATE", "CallerContext", "TraceContext", "read_context"]
