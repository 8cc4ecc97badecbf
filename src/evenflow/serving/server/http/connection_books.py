"""What a server counts of its connections, for /metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

CLOSE_REASONS = ("too_many", "header_size", "header_time", "body_time", "send_time", "unread")
"""``too_many``: beyond the limit on connections. ``header_size``: more bytes or lines of headers than allowed.
``header_time``, ``body_time``: the request's headers or body did not come in time. ``send_time``: the answer was not
read for too long. ``unread``: more of a stream was waiting to be read than may be kept."""


@dataclass(slots=True)
class ConnectionBooks:
    """Counts since the start. Owned by the server's event loop."""

    num_open: int = 0
    num_accepted: int = 0
    num_closed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLOSE_REASONS, 0))
    """By CLOSE_REASONS: connections that the server closed because of a limit."""

    def closed(self, reason: str) -> None:
        """Count one."""
        self.num_closed[reason] += 1
