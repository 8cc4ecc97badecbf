"""Routers by name: ``create_router("affinity:0.25", seed=0)``."""

from __future__ import annotations

from collections.abc import Callable

from evenflow.base.errors import RegistryError
from evenflow.routing.affinity import FRACTION, Affinity
from evenflow.routing.router import Router
from evenflow.routing.routers import LeastLoaded, Multiplexed, RandomRouter

DEFAULT_ROUTER = "affinity"

ROUTERS: dict[str, Callable[[str | None, int], Router]] = {
    "affinity": lambda argument, seed: Affinity(FRACTION if argument is None else _number(argument)),
    "least-loaded": lambda argument, seed: LeastLoaded(_nothing("least-loaded", argument, seed)),
    "multiplexed": lambda argument, seed: Multiplexed(_nothing("multiplexed", argument, seed)),
    "random": lambda argument, seed: RandomRouter(_nothing("random", argument, seed)),
}


def create_router(spec: str, *, seed: int = 0) -> Router:
    """Build ``NAME`` or ``affinity:FRACTION``. Raises RegistryError, naming what is known, or ConfigError."""
    name, colon, argument = spec.partition(":")
    factory = ROUTERS.get(name.strip())
    if factory is None:
        raise RegistryError(f"unknown router {name!r}; known: {', '.join(sorted(ROUTERS))}")
    return factory(argument.strip() if colon else None, seed)


def _number(argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise RegistryError(f"affinity takes a fraction of the mean load, as in affinity:0.25, got {argument!r}") from None


def _nothing(name: str, argument: str | None, seed: int) -> int:
    if argument is not None:
        raise RegistryError(f"router {name!r} takes no argument, got {argument!r}")
    return seed
