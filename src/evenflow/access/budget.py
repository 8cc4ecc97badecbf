"""What a client may use in a month (UTC), in tokens or in money, and what happens beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from evenflow.base.errors import ConfigError

OverBudget = Literal["refuse", "slow"]
SLOW_FACTOR = 0.1


class BudgetFields(msgspec.Struct):
    """Of a client in clients.toml; a client with neither of the first two has no budget."""

    tokens_per_month: Annotated[int, Meta(ge=1)] | None = None
    cost_per_month: str | int | float | None = None
    over_budget: OverBudget | None = None
    over_budget_weight: Annotated[float, Meta(gt=0, le=1)] | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """One client's budget for every month. At least one of ``tokens`` and ``cost`` is given; the first to be spent counts."""

    tokens: int | None = None
    """Prompt, cached and output tokens."""
    cost: Decimal | None = None
    """In the unit of the prices."""
    is_hard: bool = True
    """True: beyond it requests are refused. False: the client's weight falls."""
    weight_factor: float = SLOW_FACTOR
    """What its weight is multiplied with then."""

    def is_spent(self, tokens: int, cost: Decimal) -> bool:
        """True if so much leaves nothing of it."""
        return (self.tokens is not None and tokens >= self.tokens) or (self.cost is not None and cost >= self.cost)


def budget_of(fields: BudgetFields, where: str) -> Budget | None:
    """The budget that ``fields`` mean; None if they mean none. Raises ConfigError, beginning with ``where``."""
    cost: Decimal | None = None
    if fields.cost_per_month is not None:
        try:
            cost = Decimal(str(fields.cost_per_month))
        except InvalidOperation:
            cost = Decimal("NaN")
        if not cost.is_finite() or cost <= 0:
            raise ConfigError(f"{where}.cost_per_month is {str(fields.cost_per_month)[:40]!r}; allowed: an amount above 0")
    if fields.tokens_per_month is None and cost is None:
        for name in ("over_budget", "over_budget_weight"):
            if getattr(fields, name) is not None:
                raise ConfigError(f"{where}.{name} is given without a budget; give tokens_per_month or cost_per_month")
        return None
    if fields.over_budget_weight is not None and fields.over_budget != "slow":
        raise ConfigError(f"{where}.over_budget_weight is given; allowed with over_budget = 'slow'")
    return Budget(fields.tokens_per_month, cost, fields.over_budget != "slow", fields.over_budget_weight or SLOW_FACTOR)


__all__ = ["Budget", "BudgetFields", "budget_of"]
