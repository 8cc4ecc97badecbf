"""Who may enter now: hard limits per client, a bounded queue for all, and when to come back.

Limits are choices of the operator on top of fairness: the scheduler shares what is there, this refuses
what is too much. A client over its own limit gets ClientOverLimit (429), a full server ServerFull (503).

The predicted wait, in one place (``predicted_wait_s``): the engine finishes tokens_per_s output tokens
a second and a completion is ``mean_output_tokens`` long, so

    wait = num_ahead * mean_output_tokens / (tokens_per_s * share)

where ``share`` is the part of the service that the waiting completions get: 1 for everybody's queue, the
client's weight over the weights of all backlogged clients for its own. A caller that finds a queue full is
told the time in which *half* of it drains: then there is room for many who come back at once, and the
server has not run dry. Never longer than the two minutes after which the openai client would not retry.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType

from evenflow.access.identity import Client
from evenflow.base.errors import ClientOverLimit, InvalidRequest, Rejected, ServerFull
from evenflow.serving.client.messages import EngineStats

WINDOW_S = 60.0
RESOLUTION_S = 0.25
"""Entries closer than this are counted as one, at the later one's time: 240 numbers per client at most."""
SHORTEST_WAIT_S = 0.1
LONGEST_WAIT_S = 120.0
UNKNOWN_WAIT_S = 1.0
"""Before anything has been measured."""
_SMOOTHING = 0.05
_NO_LIMIT = 1 << 62


class SlidingWindow:
    """A sum over the last minute: no interval of WINDOW_S ever holds more than the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: deque[list[float]] = deque()
        self._sum = 0.0

    def used(self, now_s: float) -> int:
        """What the last minute holds."""
        self._expire(now_s)
        return int(self._sum)

    def add(self, now_s: float, amount: int) -> None:
        """Count ``amount``, whether it fits or not."""
        self._expire(now_s)
        self._sum += amount
        if self._entries and now_s - self._entries[-1][0] < RESOLUTION_S:
            self._entries[-1][1:] = [now_s, self._entries[-1][2] + amount]
        else:
            self._entries.append([now_s, now_s, amount])

    def take_back(self, now_s: float, amount: int) -> None:
        """Count ``amount`` no longer: the newest of what is still in the window."""
        self._expire(now_s)
        while amount and self._entries:
            taken = min(self._entries[-1][2], amount)
            self._entries[-1][2] -= taken
            self._sum -= taken
            amount -= int(taken)
            if not self._entries[-1][2]:
                self._entries.pop()

    def wait_s(self, now_s: float, amount: int) -> float:
        """Seconds until ``amount`` fits; 0: now, infinite: never."""
        self._expire(now_s)
        if amount > self.limit:
            return math.inf
        excess = self._sum + amount - self.limit
        if excess <= 0:
            return 0.0
        for _, last_s, entry in self._entries:
            excess -= entry
            if excess <= 0:
                return last_s + WINDOW_S - now_s
        raise AssertionError("the window's sum is not the sum of its entries")

    def reset_s(self, now_s: float) -> float:
        """Seconds until the window is empty again."""
        self._expire(now_s)
        return self._entries[-1][1] + WINDOW_S - now_s if self._entries else 0.0

    def check_integrity(self) -> None:
        """Assert that the sum is right and the entries are in order and few."""
        assert self._sum == sum(entry[2] for entry in self._entries), "the window's sum is wrong"
        assert all(first <= last for first, last, _ in self._entries), "an entry ends before it starts"
        assert len(self._entries) <= WINDOW_S / RESOLUTION_S + 2, "the window keeps too many entries"

    def _expire(self, now_s: float) -> None:
        while self._entries and self._entries[0][1] + WINDOW_S <= now_s:
            self._sum -= self._entries.popleft()[2]


class _Account:
    """One client's windows and waiting completions."""

    def __init__(self) -> None:
        self.requests: SlidingWindow | None = None
        self.tokens: SlidingWindow | None = None
        self.num_waiting = 0


class Limits:
    """Owns the accounts. One event loop; ``clock`` gives seconds, ``stats`` the engine's latest snapshot."""

    def __init__(self, max_queue: int, stats: Callable[[], EngineStats], clock: Callable[[], float]) -> None:
        self._max_queue = max_queue
        self._stats = stats
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._mean_output_tokens: float | None = None
        self.num_waiting = 0
        """Completions that have been let in and have not had a first token."""
        self._untold: dict[tuple[str, str], int] | None = None
        self._foreign: dict[tuple[str, str], SlidingWindow] = {}
        """Of clients that have not been here yet: what other fronts have charged them."""

    def share_minutes(self) -> None:
        """From now on, keep what is charged until ``take_untold`` takes it: other servers have the same clients."""
        self._untold = {}

    def take_untold(self) -> dict[tuple[str, str], int]:
        """What was charged since the last call, by (client, "requests" or "tokens"), to be told to other servers."""
        untold, self._untold = self._untold or {}, {}
        return untold

    def heard(self, charges: Mapping[tuple[str, str], int]) -> None:
        """Count what other servers have charged, as if it happened now."""
        now_s = self._clock()
        for (client, kind), amount in charges.items():
            account = self._accounts.get(client)
            window = getattr(account, kind, None) or self._foreign.setdefault((client, kind), SlidingWindow(_NO_LIMIT))
            if amount > 0:
                window.add(now_s, amount)
            else:
                window.take_back(now_s, -amount)

    def admit(self, client: Client, num_completions: int) -> Ticket:
        """Let one HTTP request in. Raises ClientOverLimit or ServerFull; counts as a request only if let in and not refused."""
        account = self._account(client)
        now_s = self._clock()
        if account.requests is not None:
            wait_s = account.requests.wait_s(now_s, 1)
            if wait_s > 0:
                raise ClientOverLimit(
                    f"client {client.name!r} is over its limit of {client.requests_per_minute} requests per minute", wait_s
                )
        limit = client.max_queued_requests
        if limit is not None and account.num_waiting + num_completions > limit:
            wait_s = (
                math.inf if num_completions > limit else self.predicted_wait_s(account.num_waiting / 2, self._share(client))
            )
            raise ClientOverLimit(
                f"client {client.name!r} has {account.num_waiting} requests waiting and asks for {num_completions} more; "
                f"its limit is {limit}",
                wait_s,
            )
        if self.num_waiting + num_completions > self._max_queue:
            wait_s = math.inf if num_completions > self._max_queue else self.predicted_wait_s(self.num_waiting / 2)
            raise ServerFull(
                f"the server is full: {self.num_waiting} requests are waiting and its limit is {self._max_queue}", wait_s
            )
        if account.tokens is not None:
            wait_s = account.tokens.wait_s(now_s, 1)
            if wait_s > 0:
                raise self._too_many_tokens(client, wait_s)
        if account.requests is not None:
            account.requests.add(now_s, 1)
            self._note(client, "requests", 1)
        account.num_waiting += num_completions
        self.num_waiting += num_completions
        return Ticket(self, client, num_completions)

    def predicted_wait_s(self, num_ahead: float, share: float = 1.0) -> float:
        """Seconds until ``num_ahead`` completions have been served; see the module for the formula."""
        tokens_per_s = self._stats().tokens_per_s
        if tokens_per_s <= 0 or self._mean_output_tokens is None:
            return UNKNOWN_WAIT_S
        wait_s = num_ahead * self._mean_output_tokens / (tokens_per_s * share)
        return min(max(wait_s, SHORTEST_WAIT_S), LONGEST_WAIT_S)

    def headers(self, client: Client) -> dict[str, str]:
        """OpenAI's x-ratelimit-* headers for the limits that the client has."""
        account, now_s = self._accounts.get(client.name), self._clock()
        headers = {}
        for kind, limit in (("requests", client.requests_per_minute), ("tokens", client.tokens_per_minute)):
            if limit is None:
                continue
            window = getattr(account, kind, None)
            used = window.used(now_s) if window is not None else 0
            reset_s = window.reset_s(now_s) if window is not None else 0.0
            headers[f"x-ratelimit-limit-{kind}"] = str(limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(max(limit - used, 0))
            headers[f"x-ratelimit-reset-{kind}"] = format_duration(reset_s)
        return headers

    def completed(self, output_tokens: int) -> None:
        """A completion ended after so many tokens: the mean follows."""
        if self._mean_output_tokens is None:
            self._mean_output_tokens = float(output_tokens)
        self._mean_output_tokens += _SMOOTHING * (output_tokens - self._mean_output_tokens)

    def check_integrity(self) -> None:
        """Assert that the waiting completions add up and every window is right."""
        assert self.num_waiting == sum(account.num_waiting for account in self._accounts.values())
        for account in self._accounts.values():
            assert account.num_waiting >= 0
            for window in (account.requests, account.tokens):
                if window is not None:
                    window.check_integrity()

    def _account(self, client: Client) -> _Account:
        account = self._accounts.get(client.name)
        if account is None:
            account = self._accounts[client.name] = _Account()
        for kind, limit in (("requests", client.requests_per_minute), ("tokens", client.tokens_per_minute)):
            window = getattr(account, kind)
            if limit is None:
                setattr(account, kind, None)
            elif window is None:
                heard = self._foreign.pop((client.name, kind), None) or SlidingWindow(limit)
                heard.limit = limit
                setattr(account, kind, heard)
            else:  # clients.toml may have been read again
                window.limit = limit
        return account

    def _charge(self, client: Client, tokens: int, *, is_checked: bool) -> None:
        account = self._accounts.get(client.name)
        window = account.tokens if account is not None else None
        if window is None:
            return
        now_s = self._clock()
        if is_checked:
            wait_s = window.wait_s(now_s, tokens)
            if wait_s > 0:
                raise self._too_many_tokens(client, wait_s)
        window.add(now_s, tokens)
        self._note(client, "tokens", tokens)

    def _note(self, client: Client, kind: str, amount: int) -> None:
        if self._untold is not None:
            self._untold[client.name, kind] = self._untold.get((client.name, kind), 0) + amount

    def _refund(self, client: Client, tokens: int) -> None:
        """A request was refused after all: it does not count, and neither do its tokens."""
        account = self._accounts.get(client.name)
        if account is None:
            return
        now_s = self._clock()
        for kind, amount in (("requests", 1), ("tokens", tokens)):
            if (window := getattr(account, kind)) is not None:
                window.take_back(now_s, amount)
                self._note(client, kind, -amount)

    def _release(self, client: Client, num_completions: int) -> None:
        account = self._accounts[client.name]
        account.num_waiting -= num_completions
        self.num_waiting -= num_completions
        if account.num_waiting == 0 and account.requests is None and account.tokens is None:
            del self._accounts[client.name]  # idle clients take no memory

    def _share(self, client: Client) -> float:
        clients = self._stats().clients
        others = sum(c.weight for name, c in clients.items() if c.num_waiting and name != client.name)
        return client.weight / (client.weight + others)

    @staticmethod
    def _too_many_tokens(client: Client, wait_s: float) -> ClientOverLimit:
        return ClientOverLimit(
            f"client {client.name!r} is over its limit of {client.tokens_per_minute} tokens per minute", wait_s
        )


class Ticket:
    """One HTTP request's place: a context manager that gives back what it still holds."""

    def __init__(self, limits: Limits, client: Client, num_completions: int) -> None:
        self._limits = limits
        self._client = client
        self._num_waiting = num_completions
        self._num_completions = num_completions
        self._num_prompt_tokens = 0

    def charge_prompt(self, tokens: int) -> None:
        """Count the prompt's tokens. Raises ClientOverLimit if they do not fit into the client's minute."""
        self._limits._charge(self._client, tokens, is_checked=True)
        self._num_prompt_tokens += tokens

    def charge_output(self, tokens: int) -> None:
        """Count output tokens as they come. Never refuses: what has begun may end."""
        self._limits._charge(self._client, tokens, is_checked=False)

    def started(self) -> None:
        """One completion waits no more: it has had its first token, or ended without one."""
        assert self._num_waiting > 0, "more completions started than were let in"
        self._num_waiting -= 1
        self._limits._release(self._client, 1)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, (InvalidRequest, Rejected)) and self._num_waiting == self._num_completions:
            self._limits._refund(self._client, self._num_prompt_tokens)
        if self._num_waiting:
            self._limits._release(self._client, self._num_waiting)
            self._num_waiting = 0


def format_duration(seconds: float) -> str:
    """OpenAI's notation: 0s, 120ms, 1.5s, 6m0s."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 1000) / 1000:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
