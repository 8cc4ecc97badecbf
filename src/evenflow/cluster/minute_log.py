"""Limits per minute over several fronts: what each has charged, told to the others.

Every front counts in its own sliding window, and adds what others have charged when it hears of it. So a client can go beyond
its limit by at most what the other fronts let in between two exchanges: (F - 1) times what one front takes in ``sync_s``.
Heard late means counted late, so nobody waits longer than a minute and ``sync_s`` for what has been used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW_S = 60.0

Charges = Mapping[tuple[str, str], int]
"""By (client, "requests" or "tokens"); below 0: given back."""


class MinuteLog:
    """What was charged in the last minute, by whom, in order of time."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, float, str, Charges]] = deque()
        self._next = 1
        self._heard: dict[str, int] = {}
        """The entry up to which each front was told, in answers that arrived."""
        self._sent: dict[str, int] = {}
        self._numbers: dict[str, int] = {}

    def exchange(self, front: str, number: int, charges: Charges, now_s: float) -> Charges:
        """Note ``charges`` once, however often that number is sent; return what others have charged since the last one.

        A repeated number is answered as before, and with what has come meanwhile. A front that was never heard of before
        is told the whole last minute.
        """
        while self._entries and now_s - self._entries[0][1] > WINDOW_S:
            self._entries.popleft()
        if number > self._numbers.get(front, 0):
            self._numbers[front] = number
            self._heard[front] = self._sent.get(front, 0)
            if charges:
                self._entries.append((self._next, now_s, front, dict(charges)))
                self._next += 1
        since = self._heard.get(front, 0)
        self._sent[front] = self._next
        told: dict[tuple[str, str], int] = {}
        for entry, _, by, amounts in reversed(self._entries):
            if entry < since:
                break
            if by != front:
                for key, amount in amounts.items():
                    told[key] = told.get(key, 0) + amount
        return {key: amount for key, amount in told.items() if amount}
