"""Weights and tiers of clients from a clients.toml, for replays: the same file that a server reads, fewer of its fields."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.fairness.books.weights import HEAVIEST, LIGHTEST


@dataclass(frozen=True, slots=True)
class ClientShares:
    """Who is due how much."""

    weight_by_client: Mapping[str, float] = field(default_factory=dict)
    """A client's own, without its tier's; 1 for everybody else."""
    tier_by_client: Mapping[str, str] = field(default_factory=dict)
    weight_by_tier: Mapping[str, float] = field(default_factory=dict)


def read_clients(path: str | os.PathLike[str]) -> ClientShares:
    """Read ``[clients.NAME] weight, tier`` and ``[tiers.NAME] weight``; other fields are the server's and passed over.

    Raises ConfigError, naming the file and the entry, for a weight that is not from 1e-9 to 1e9 or an unknown tier.
    """
    name = os.fspath(path)
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{name}: {error}") from error
    weight_by_tier = {tier: _weight(name, f"tiers.{tier}", entry) for tier, entry in _tables(name, content, "tiers").items()}
    weight_by_client: dict[str, float] = {}
    tier_by_client: dict[str, str] = {}
    for client, entry in _tables(name, content, "clients").items():
        weight = _weight(name, f"clients.{client}", entry)
        tier = entry.get("tier")
        if tier is not None:
            if tier not in weight_by_tier:
                known = ", ".join(sorted(weight_by_tier)) or "none"
                raise ConfigError(f"{name}: clients.{client}.tier is {tier!r}; known tiers: {known}")
            tier_by_client[client] = tier
        weight_by_client[client] = weight
    return ClientShares(weight_by_client, tier_by_client, weight_by_tier)


def _tables(name: str, content: Mapping[str, object], key: str) -> dict[str, dict[str, object]]:
    tables = content.get(key, {})
    if not isinstance(tables, dict) or not all(isinstance(entry, dict) for entry in tables.values()):
        raise ConfigError(f"{name}: {key} must be tables [{key}.NAME]")
    return tables


def _weight(name: str, where: str, entry: Mapping[str, object]) -> float:
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not LIGHTEST <= weight <= HEAVIEST:
        raise ConfigError(f"{name}: {where}.weight is {weight!r}; allowed: {LIGHTEST:g} to {HEAVIEST:g}")
    return float(weight)
