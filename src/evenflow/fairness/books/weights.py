"""Shares of clients: a client of weight 2 is due twice the service of a client of weight 1.

A client may be in a tier, which has a weight too. Policies that compare clients with each other multiply the
two (``tiered``); a hierarchy lets tiers compete first and uses the client's own weight within its tier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evenflow.base.errors import ConfigError

LIGHTEST, HEAVIEST = 1e-9, 1e9
"""Weights that are accepted: within these, counters are exact (bill.py)."""

Weights = Mapping[str, float] | Callable[[str], float]
"""Weight by client. A mapping is read at every use, so its owner may change it; a client not in it has weight 1."""


def weight_lookup(weights: Weights | None) -> Callable[[str], float]:
    """A function from client to weight. Raises ConfigError for weights that are not from 1e-9 to 1e9.

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


def tiered(
    weights: Weights | None, tier_by_client: Mapping[str, str], weight_by_tier: Mapping[str, float]
) -> Callable[[str], float]:
    """A function from client to its own weight times its tier's. All three are read at every use. Raises ConfigError."""
    check_tiers(tier_by_client, weight_by_tier)
    own = weight_lookup(weights)

    def weight(client_id: str) -> float:
        tier = tier_by_client.get(client_id)
        return own(client_id) if tier is None else own(client_id) * weight_by_tier[tier]

    return weight


def check_tiers(tier_by_client: Mapping[str, str], weight_by_tier: Mapping[str, float]) -> None:
    """Raise ConfigError for a tier's weight that is not from 1e-9 to 1e9, or a client in a tier without one."""
    for tier, weight in weight_by_tier.items():
        if not LIGHTEST <= weight <= HEAVIEST:
            raise ConfigError(f"the weight of tier {tier!r} is {weight}; allowed: {LIGHTEST:g} to {HEAVIEST:g}")
    for client_id, tier in tier_by_client.items():
        if tier not in weight_by_tier:
            known = ", ".join(sorted(weight_by_tier)) or "none"
            raise ConfigError(f"the tier of client {client_id!r} is {tier!r}; known tiers: {known}")


def _checked(client_id: str, weight: float) -> float:
    if not LIGHTEST <= weight <= HEAVIEST:
        raise ConfigError(f"the weight of client {client_id!r} is {weight}; allowed: {LIGHTEST:g} to {HEAVIEST:g}")
    return weight
