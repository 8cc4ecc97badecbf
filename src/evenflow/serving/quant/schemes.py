"""The ways to quantise weights, by name. No torch.

All of them cut the input width of a matrix into groups of 32 and give each group of each output a scale of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evenflow.base.errors import ConfigError

GROUP = 32
"""Inputs that share a scale."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one matrix is quantised: w = scale (code - offset), or w = scale code + minimum."""

    name: str
    bits: int
    """4 or 8 a code."""
    has_minima: bool
    """True: each group has a minimum, and codes begin there; False: codes are symmetric around zero."""

    @property
    def offset(self) -> int:
        """The code of zero where there are no minima, else 0."""
        return 0 if self.has_minima else 1 << (self.bits - 1)

    @property
    def bits_per_weight(self) -> float:
        """Of what is kept, scales and minima of 16 bits included."""
        return self.bits + 16 * (2 if self.has_minima else 1) / GROUP


INT8 = Scheme("int8-g32", 8, False)
INT4 = Scheme("int4-g32", 4, False)
INT4_MIN = Scheme("int4-g32-min", 4, True)
SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in (INT8, INT4, INT4_MIN)}


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is done to a whole model. Norms, biases and adapters stay as they are."""

    name: str
    linears: Scheme
    """The matrices of the decoder layers."""
    vocabulary: Scheme
    """The output head, and the token embedding where both are one matrix. An embedding of its own stays as it is: only the
    rows of the step's tokens are read."""


QUANTIZATIONS: Mapping[str, Quantization] = {
    "int8": Quantization("int8", INT8, INT8),
    "int4": Quantization("int4", INT4_MIN, INT8),
    "int8-g32": Quantization("int8-g32", INT8, INT8),
    "int4-g32": Quantization("int4-g32", INT4, INT8),
    "int4-g32-min": Quantization("int4-g32-min", INT4_MIN, INT8),
}
"""By the value of ``--quantization``; ``none`` is no entry."""


def find_quantization(name: str) -> Quantization | None:
    """None for ``none``. Raises ConfigError for a name that there is not."""
    if name == "none":
        return None
    if name not in QUANTIZATIONS:
        raise ConfigError(f"quantization is {name!r}; allowed: none, {', '.join(QUANTIZATIONS)}")
    return QUANTIZATIONS[name]


__all__ = ["GROUP", "INT4", "INT4_MIN", "INT8", "QUANTIZATIONS", "SCHEMES", "Quantization", "Scheme", "find_quantization"]
