"""Evidence that this package brings along: what compressed sums did to the loss of a real language model.

From ``benchmarks/results/real_model--epyc-2-cores.json``; a test compares every figure with that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SOURCE = "real_model--epyc-2-cores.json"

LOSSES: Mapping[str, tuple[float, float]] = {
    "bf16": (-0.0001, 0.0006),
    "int8-g32": (-0.0023, 0.0037),
    "int4-g32": (0.344, 0.0364),
    "hadamard-int4": (0.12, 0.0236),
    "outlier-int4": (0.1525, 0.0215),
}
"""Compressor at all forward sums -> (nats per token more than dense, half width of the 95 % interval)."""


def published_evaluation() -> dict[str, Any]:
    """Return the figures in the form of an evaluation: SmolLM2-135M at TP 3, 4,096 tokens of Python's language reference."""
    rows = [{"spec": spec, "difference": mean, "interval": half} for spec, (mean, half) in LOSSES.items()]
    parameters = {"model": "SmolLM2-135M-Instruct", "tp": 3, "text": "Python's language reference"}
    return {"evaluation": "language", "parameters": parameters, "rows": rows}
