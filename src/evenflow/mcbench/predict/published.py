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
    "mxfp4": (0.5775, 0.0796),
    "q8": (0.0382, 0.0094),
    "q4": (1.6949, 0.178),
    "int6-g32": (0.0181, 0.012),
    "fp8-g128": (0.0114, 0.004),
    "mxfp8": (0.041, 0.0118),
    "hadamard-fp8": (0.0054, 0.0081),
    "spike-int3": (0.2394, 0.0406),
    "spike-int2": (1.7649, 0.2064),
    "topk:0.1": (5.7156, 0.3573),
    "topk-bitmap:0.25": (3.5937, 0.3768),
    "q2": (16.0665, 1.0055),
}
"""Compressor at all forward sums -> (nats per token more than dense, half width of the 95 % interval)."""


def published_evaluation() -> dict[str, Any]:
    """Return the figures in the form of an evaluation: SmolLM2-135M at TP 3, 4,096 tokens of Python's language reference."""
    rows = [{"spec": spec, "difference": mean, "interval": half} for spec, (mean, half) in LOSSES.items()]
    parameters = {"model": "SmolLM2-135M-Instruct", "tp": 3, "text": "Python's language reference"}
    return {"evaluation": "language", "parameters": parameters, "rows": rows}
