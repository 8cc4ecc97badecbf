"""What a policy, and the books it keeps, may read of a request."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol


class Schedulable(Protocol):
    """What a policy may read of a request. Never written to."""

    @property
    def request_id(self) -> Hashable: ...
    @property
    def client_id(self) -> str: ...
    @property
    def adapter(self) -> str | None: ...
    @property
    def arrival_s(self) -> float: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def max_output_tokens(self) -> int: ...
    @property
    def known_output_tokens(self) -> int | None:
        """The true output length; only an oracle may look."""
        ...

    @property
    def is_complete(self) -> bool:
        """It has ended by itself, not by abort or error: its output length is the one it was meant to have."""
        ...
