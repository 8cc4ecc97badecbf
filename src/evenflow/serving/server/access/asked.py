"""What a body says of itself, whatever its shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body says of itself, whatever its shape."""

    model: str | None
    """The base model's name or an adapter's; None: the base model."""
    adapter: str | None = None
    """An adapter named beside the model, as SGLang's clients do."""
    user: tuple[str, str] | None = None
    """(field, value) with which the body names the caller's own user; it counts on an open server only."""
    is_streamed: bool = False
    slo_ttft_s: float | None = None
    """Seconds within which the first token is wanted; None: it does not say."""
