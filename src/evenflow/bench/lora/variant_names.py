"""The names of what can be compared, apart from what they need to run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from evenflow.base.errors import ConfigError, RegistryError

VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "unified": "as shipped: one arena for KV cache and adapters, true ranks",
        "partitioned": "the same bytes, a share (0.5) of them for adapters alone; partitioned:SHARE",
        "slots": "slots padded to the largest rank, outside the KV pool, one per running sequence; slots:N",
        "padded": "stacks of the batch's adapters, padded to the largest rank, kept while the batch stays; batched products",
        "gather": "a copy of the weights for every row, padded to the largest rank",
        "loop": "plain torch, adapter by adapter",
        "merged": "a merged copy of the model for each adapter, at most 8; merged:N",
        "none": "adapters are loaded and not applied: what better kernels could gain at most",
    }
)
"""Ways of our own engine, and one line each."""

PEERS: Mapping[str, str] = MappingProxyType(
    {
        "peft": "transformers + peft, static batches of one adapter after the other",
        "peft-names": "transformers + peft, static batches of mixed adapters through adapter_names",
    }
)
"""Other engines, in processes of their own; for suites that serve a fixed set of requests."""


def check_variant(name: str) -> None:
    """Raises RegistryError, listing the known ones, for an unknown NAME[:NUMBER], ConfigError for a wrong number."""
    base, colon, argument = name.partition(":")
    if base not in VARIANTS and name not in PEERS:
        raise RegistryError(f"unknown variant {name!r}; known: {', '.join([*VARIANTS, *PEERS])}")
    if not colon:
        return
    value = number(argument)
    if base == "partitioned" and 0 < value < 1:
        return
    if base in ("slots", "merged") and value >= 1 and value == int(value):
        return
    raise ConfigError(f"variant {name!r}; allowed: partitioned:SHARE between 0 and 1, slots:N and merged:N from 1")


def number(text: str) -> float:
    """What stands after a variant's colon. Raises ConfigError."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{text!r} after a variant's colon; allowed: a number") from None


__all__ = ["PEERS", "VARIANTS", "check_variant", "number"]
