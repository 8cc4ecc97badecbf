"""Shares of clients: a client of weight 2 is due twice the service of a client of weight 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from evenflow.base.errors import ConfigError

Weights = Mapping[str, float] | Callable[[str], float]
"""Weight by client. A mapping is read at every use, so its owner may change it; a client not in it has weight 1."""


def weight_lookup(weights: Weights | None) -> Callable[[str], float]:
    """A function from client to weight. Raises ConfigError for weights that are not finite and above 0.

    What a callable returns, or a mapping holds later, is checked at each look-up.
    """
    if weights is None:
        return lambda client_id: 1.0
    if callable(weights):
        read = weights
    else:
        shares = weights
        for client_id in shares:
            _checked(client_id, shares[client_id])

        def read(client_id: str) -> float:
            return shares.get(client_id, 1.0)

    return lambda client_id: _checked(client_id, read(client_id))


def _checked(client_id: str, weight: float) -> float:
    if not (0 < weight < math.inf):
        raise ConfigError(f"the weight of client {client_id!r} is {weight}; allowed: finite and above 0")
    return weight
