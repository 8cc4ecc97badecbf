"""What is kept of requests: sums by hour, client, adapter and outcome."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime

OUTCOMES = ("stop", "length", "abort", "error")
HOUR_S = 3600


@dataclass(frozen=True, slots=True, order=True)
class AccountKey:
    """What requests are added up by."""

    hour_s: int
    """Start of the hour in which they ended, in seconds since 1970 (UTC)."""
    client: str
    adapter: str
    """Empty: the base model."""
    outcome: str
    """One of ``OUTCOMES``: how the completion ended; abort: its caller had gone."""


@dataclass(slots=True)
class Sums:
    """Totals of the completions of one key."""

    requests: int = 0
    """Completions: a request for ``n`` of them counts n times."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt tokens, found in the prefix cache."""
    completion_tokens: int = 0
    service: float = 0.0
    """What the policy charged; of completions that were cut short it comes a moment after their tokens."""
    queue_s: float = 0.0
    first_token_s: float = 0.0
    """Arrival to first token, added up."""
    total_s: float = 0.0
    """Arrival to the end, added up."""

    def add(self, other: Sums) -> None:
        """Add another one to this."""
        for name in SUM_NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))


SUM_NAMES = tuple(field.name for field in fields(Sums))
KEY_NAMES = tuple(field.name for field in fields(AccountKey))


def hour_of(unix_s: float) -> int:
    """The start of the hour that a moment lies in, in seconds since 1970."""
    return int(unix_s // HOUR_S) * HOUR_S


def hour_text(hour_s: int) -> str:
    """``2026-11-30T13:00Z``."""
    return datetime.fromtimestamp(hour_s, UTC).strftime("%Y-%m-%dT%H:%MZ")
