"""Monthly budgets of clients: who may not ask any more this month, and whose weight has fallen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from evenflow.access.budget import Budget
from evenflow.access.identity import Client, Directory
from evenflow.accounts.spending import Spending, Spent
from evenflow.base.errors import BudgetSpent, ConfigError

log = logging.getLogger("evenflow.budgets")


class BudgetState(msgspec.Struct):
    """One client's budget and what is used of it."""

    client: str
    used_tokens: int
    tokens: int | None
    """None: tokens are not limited."""
    used_cost: str | None
    """An exact amount, as a text; None: there are no prices."""
    cost: str | None
    renews: str
    """When the next month begins, RFC 3339."""
    is_spent: bool
    over_budget: str
    """"refuse" or "slow"."""


class Budgets:
    """Reads the directory anew each time, so that an edited file counts at once. One event loop.

    ``spending`` None: no accounts are kept, and then nobody may have a budget.
    """

    def __init__(self, directory: Callable[[], Directory], spending: Spending | None, *, has_prices: bool) -> None:
        self._directory = directory
        self._spending = spending
        self._has_prices = has_prices
        self._seen: Directory | None = None
        self._clients: list[Client] = []
        """Those of the directory that was seen last that have a budget."""

    def check_can_be_kept(self, directory: Directory) -> None:
        """Raise ConfigError if a client has a budget that nobody could keep."""
        for client in directory.clients.values():
            if client.budget is None:
                continue
            if self._spending is None:
                raise ConfigError(
                    f"client {client.name!r} has a budget, which is kept with the accounts: give --accounts WHERE"
                )
            if client.budget.cost is not None and not self._has_prices:
                raise ConfigError(f"client {client.name!r} has a budget in money, by the prices: give --prices FILE")

    def admit(self, client: Client) -> None:
        """Raise BudgetSpent if the client has used what it may use this month, and more of it is refused."""
        budget, spending = client.budget, self._spending
        if budget is None or not budget.is_hard or spending is None:
            return
        spent = spending.of(client.name)
        if budget.is_spent(spent.tokens, spent.cost):
            raise BudgetSpent(
                f"client {client.name!r} has used its budget of this month ({_told(budget, spent)}); it renews at "
                f"{moment(spending.renews_s)}",
                spending.seconds_left(),
            )

    def slowed(self) -> dict[str, float]:
        """What the weights of clients are multiplied with that are over a budget that slows them, by name."""
        return {
            client.name: client.budget.weight_factor
            for client in self._with_budget()
            if client.budget is not None and not client.budget.is_hard and self._is_spent(client)
        }

    def states(self, name: str | None = None) -> list[BudgetState]:
        """The budget of each client that has one, or of one client."""
        return [self._state(client) for client in self._with_budget() if name is None or client.name == name]

    def used_parts(self) -> list[tuple[str, float]]:
        """(client, used part of its budget), the fullest first; of a budget in tokens and money, the larger part."""
        return sorted(((client.name, self._part(client)) for client in self._with_budget()), key=lambda pair: -pair[1])

    def _with_budget(self) -> list[Client]:
        directory = self._directory()
        if directory is not self._seen:
            self._seen = directory
            self._clients = [client for client in directory.clients.values() if client.budget is not None]
        return self._clients if self._spending is not None else []

    def _spent(self, client: Client) -> Spent:
        return Spent() if self._spending is None else self._spending.of(client.name)

    def _is_spent(self, client: Client) -> bool:
        spent = self._spent(client)
        return client.budget is not None and client.budget.is_spent(spent.tokens, spent.cost)

    def _part(self, client: Client) -> float:
        spent, budget = self._spent(client), client.budget
        assert budget is not None
        of_tokens = spent.tokens / budget.tokens if budget.tokens is not None else 0.0
        return max(of_tokens, float(spent.cost / budget.cost) if budget.cost is not None else 0.0)

    def _state(self, client: Client) -> BudgetState:
        spent, budget = self._spent(client), client.budget
        assert budget is not None
        assert self._spending is not None
        return BudgetState(
            client.name,
            spent.tokens,
            budget.tokens,
            amount(spent.cost) if self._has_prices else None,
            None if budget.cost is None else amount(budget.cost),
            moment(self._spending.renews_s),
            budget.is_spent(spent.tokens, spent.cost),
            "refuse" if budget.is_hard else "slow",
        )


def moment(unix_s: int) -> str:
    """``2026-12-01T00:00:00Z``."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def amount(value: Decimal) -> str:
    """An amount of money as a text of its exact value, without an exponent."""
    return f"{value:f}"


def _told(budget: Budget, spent: Spent) -> str:
    parts = []
    if budget.tokens is not None:
        parts.append(f"{spent.tokens:,} of {budget.tokens:,} tokens")
    if budget.cost is not None:
        parts.append(f"{amount(spent.cost)} of {amount(budget.cost)} by the prices")
    return ", ".join(parts)


__all__ = ["BudgetState", "Budgets"]
