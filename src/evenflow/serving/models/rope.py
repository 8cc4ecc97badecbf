"""Rotary position embedding as a value: which kind, and its numbers, read from ``config.json``. No torch.

transformers 5 writes one ``rope_parameters`` object; published models have ``rope_theta`` and
``rope_scaling``. Both are read. Kinds: default (RoPE, Su et al. 2021), linear (position
interpolation), dynamic (NTK-aware, inside the original context only), llama3, yarn (Peng et al. 2023) and
longrope (Ding et al. 2024). Fields mean what they mean to transformers, with one addition: ``attn_factor`` of
a yarn rope multiplies the magnitude, as in the code of YaRN's authors, for which such models were published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evenflow.base.errors import ModelError

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")

_FIELDS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "attn_factor",
            "extrapolation_factor",
            "finetuned",
        }
    ),
    "longrope": frozenset({"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"}),
}
_IGNORED = {"original_max_position_embeddings", "finetuned"}
"""Fields that published models have beside kinds that do not read them; they change nothing there."""
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
}
_SYNONYMS = {"su": "longrope"}
"""Earlier names of kinds."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """One kind of rotary embedding. Fields that a kind does not use keep their defaults."""

    kind: str = "default"
    partial: float = 1.0
    """The part of every head that is rotated, its first elements."""
    theta: float = 10000.0
    """Base of the geometric series of wavelengths."""
    factor: float = 1.0
    """How many times the context is stretched."""
    original_max_position: int = 0
    """Context, in tokens, before stretching (llama3, yarn, dynamic, longrope)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    extrapolation_factor: float = 1.0
    """How much of the unstretched frequencies is kept (yarn)."""
    attention_factor: float = 1.0
    """Multiplies cos and sin (yarn, longrope)."""
    short_factor: tuple[float, ...] = ()
    """Divides the frequencies of sequences inside the original context (longrope), one number for each frequency."""
    long_factor: tuple[float, ...] = ()
    """The same where longer sequences are served (longrope)."""

    def rotary_dim(self, head_dim: int) -> int:
        """How many elements of a head are rotated."""
        return int(head_dim * self.partial)


def read_rope(
    config: Mapping[str, Any],
    max_position_embeddings: int,
    head_dim: int,
    *,
    default_theta: float = 10000.0,
    default_partial: float | None = None,
    layer_type: str | None = None,
) -> RopeSpec:
    """Read the rotary embedding of a ``config.json``. Raises ModelError naming field and value.

    ``default_partial``: ``partial_rotary_factor`` where it is missing; None: it must be 1. ``layer_type``: the kind of layer
    whose rope it is, where a model has one for each; None: it has one for all.
    """
    field, given = _rope_object(config, layer_type)
    kind = given.get("rope_type") or given.get("type") or "default"
    kind = _SYNONYMS.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in ROPE_KINDS:
        raise ModelError(f"{field}.rope_type is {kind!r}; supported: {', '.join(ROPE_KINDS)}")
    unknown = sorted(set(given) - _COMMON - _IGNORED - _FIELDS[kind])
    if unknown:
        raise ModelError(f"{field}.{unknown[0]} is {given[unknown[0]]!r}; a {kind} rope has no such field")
    for name in _REQUIRED[kind]:
        if given.get(name) is None:
            raise ModelError(f"{field}.{name} is missing; a {kind} rope needs it")
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    partial = (default_partial or 1.0) if partial is None else _positive(partial, "partial_rotary_factor")
    if partial != 1 and default_partial is None:
        raise ModelError(f"partial_rotary_factor is {partial!r}; supported: 1.0")
    rotary_dim = int(head_dim * partial)
    if partial > 1 or (partial < 1 and (rotary_dim % 2 or not rotary_dim)):
        raise ModelError(f"partial_rotary_factor is {partial!r}; allowed: a part of head_dim ({head_dim}) that is even")

    def number(name: str, default: float) -> float:
        value = given.get(name)
        return default if value is None else _positive(value, f"{field}.{name}")

    theta = given.get("rope_theta", config.get("rope_theta"))
    # Where a value stands both inside the rope object and beside it, the one beside it counts, as in transformers.
    original = config.get("original_max_position_embeddings")
    if original is None:
        original = number("original_max_position_embeddings", max_position_embeddings)
    else:
        original = _positive(original, "original_max_position_embeddings")
    # Where no factor is given, it is how much longer the context has become.
    factor = number("factor", max_position_embeddings / original if kind in ("yarn", "longrope") else 1.0)
    truncate = given.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ModelError(f"{field}.truncate is {truncate!r}; allowed: true or false")
    low, high = number("low_freq_factor", 1.0), number("high_freq_factor", 4.0)
    if kind == "llama3" and high <= low:
        raise ModelError(f"{field}.high_freq_factor is {high}; allowed: above low_freq_factor ({low})")
    return RopeSpec(
        kind=kind,
        partial=float(partial),
        theta=default_theta if theta is None else _positive(theta, "rope_theta"),
        factor=factor,
        original_max_position=int(original),
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        truncate=truncate,
        extrapolation_factor=number("extrapolation_factor", 1.0),
        attention_factor=_attention_factor(kind, number, factor, original),
        short_factor=_factors(given, "short_factor", field, rotary_dim) if kind == "longrope" else (),
        long_factor=_factors(given, "long_factor", field, rotary_dim) if kind == "longrope" else (),
    )


def is_rope_per_type(config: Mapping[str, Any]) -> bool:
    """Whether ``rope_parameters`` (or ``rope_scaling``) holds one rope for each type of layer."""
    found = next((config[field] for field in ("rope_parameters", "rope_scaling") if config.get(field) is not None), None)
    return isinstance(found, Mapping) and any(isinstance(entry, Mapping) for entry in found.values())


def _rope_object(config: Mapping[str, Any], layer_type: str | None) -> tuple[str, Mapping[str, Any]]:
    """(name of the field it came from, the rope object, {} if there is none)."""
    for field in ("rope_parameters", "rope_scaling"):
        value = config.get(field)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise ModelError(f"{field} is {value!r}; allowed: an object or null")
        nested = [key for key, entry in value.items() if isinstance(entry, Mapping)]
        if not nested:
            return field, value
        if layer_type is None:
            raise ModelError(f"{field}.{nested[0]} is an object; a rope of its own per layer type is not supported here")
        if layer_type not in nested:
            raise ModelError(f"{field}.{layer_type} is missing; given: {', '.join(nested)}")
        return f"{field}.{layer_type}", value[layer_type]
    return "rope_scaling", {}


def _positive(value: Any, name: str) -> float:
    """``value`` as a number above 0 that fp32 can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ModelError(f"{name} is {repr(value)[:40]}; allowed: a number above 0")
    return float(value)


def _factors(given: Mapping[str, Any], name: str, field: str, rotary_dim: int) -> tuple[float, ...]:
    """A longrope's numbers, one for each of the frequencies."""
    value = given[name]
    if not isinstance(value, list) or len(value) != rotary_dim // 2:
        shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:40]
        raise ModelError(
            f"{field}.{name} is {shown}; allowed: a list of {rotary_dim // 2} numbers, half of the rotated elements"
        )
    return tuple(_positive(entry, f"{field}.{name}") for entry in value)


def _attention_factor(kind: str, number: Callable[[str, float], float], factor: float, original: float) -> float:
    """What multiplies cos and sin: the correction of the softmax temperature, given or from the stretching."""
    if kind not in ("yarn", "longrope"):
        return 1.0

    def mscale(scale: float, by: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * by * math.log(scale) + 1.0

    given = number("attention_factor", 0.0)
    if kind == "longrope":
        return given or (1.0 if factor <= 1 or original <= 1 else math.sqrt(1 + math.log(factor) / math.log(original)))
    one, all_dims = number("mscale", 0.0), number("mscale_all_dim", 0.0)
    if not given:
        given = mscale(factor, one) / mscale(factor, all_dims) if one and all_dims else mscale(factor)
    return given * number("attn_factor", 1.0)


__all__ = ["ROPE_KINDS", "RopeSpec", "is_rope_per_type", "read_rope"]
