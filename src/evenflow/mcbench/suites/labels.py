"""What a result is called in tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenflow.mcbench.names import DEFAULT_LAYERS

Result = Mapping[str, Any]


def label(result: Result) -> str:
    """Return what was compressed, and where, and how many seeds diverged."""
    p = result["parameters"]
    extra = [f"layers {p['layers']}"] if p["layers"] != DEFAULT_LAYERS else []
    extra += [f"warm-up {p['warmup_steps']}"] if p["warmup_steps"] else []
    extra += [f"gradient {p['gradient']}"] if p["gradient"] and not p["gradient"].endswith("masked") else []
    if p.get("pretrain_compress", "none") != "none":
        extra.append(f"pre-trained with {p['pretrain_compress']}")
    if count := len(result.get("diverged", ())):
        extra.append(f"diverged: {count} of {count + len(result['seeds'])} seeds")
    return p["compress"] + (f" ({', '.join(extra)})" if extra else "")


def layout_of(result: Result) -> str:
    """Return how the ranks of a result were laid out, in words."""
    p = result["parameters"]
    return f"DP = {p['dp']}" if p.get("dp", 1) > 1 else f"TP x PP = {p['tp']} x {p['pp']}"
