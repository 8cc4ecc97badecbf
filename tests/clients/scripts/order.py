"""What every script asks for, and what the answers have to hold."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

BASE = sys.argv[1]
QUESTION = "Where is the bakery?"
ANSWER = "Gull Street"


class Goods(str, Enum):  # noqa: UP042 - as the frameworks' own examples write it
    """What there is."""

    CAKE = "honey cake"
    ROPE = "rope"


class Order(BaseModel):
    """An order in a shop."""

    model_config = ConfigDict(extra="forbid")

    what: Goods
    number: int = Field(ge=1, le=9)


def check_order(order: Any) -> None:
    """Fail unless these are an order's arguments."""
    Order.model_validate(order if isinstance(order, dict) else order.model_dump())
