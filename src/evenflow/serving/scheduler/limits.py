"""What one step and one request may take at most."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.base.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Raises ConfigError for limits that cannot work together."""

    max_num_seqs: int = 16
    """Requests that run at once."""
    max_batch_tokens: int = 512
    """Rows of one step; at least max_num_seqs, so that every running request can decode."""
    max_model_len: int = 2048
    """Tokens of one request, prompt and output."""
    page_tokens: int = 16
    """Tokens per arena page."""
    window: int | None = None
    """Tokens that a token sees in every layer, itself included; None: in some layer it sees all before it."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_batch_tokens", "max_model_len", "page_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window is {self.window}; allowed: 1 or more, or none")
        if self.max_batch_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_batch_tokens is {self.max_batch_tokens}; allowed: at least max_num_seqs ({self.max_num_seqs}), "
                "or a running request would stand still"
            )
