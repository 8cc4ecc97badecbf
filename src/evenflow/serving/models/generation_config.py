"""``generation_config.json``: what a model's makers recommend for requests that do not say. No torch.

As in vLLM, its sampling fields count whatever ``do_sample`` says, and ``max_new_tokens`` is a default for
``max_tokens``: it limits nobody who asks for more, and a prompt that leaves less room is answered with what fits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evenflow.base.errors import ModelError

_KINDS: dict[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": (int,),
    "min_p": (int, float),
    "repetition_penalty": (int, float),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "max_new_tokens": (int,),
}
"""The fields that vLLM reads, with the types of their values."""

FIELDS = tuple(_KINDS)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Return the parsed file of a model folder, {} without one. Raises ModelError if it holds no JSON object."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file.name} holds no JSON object")
    return value


def sampling_defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    """Return the recommended fields of SamplingParams with their values; what is no number is passed over."""
    found: dict[str, float] = {}
    for name, kind in _KINDS.items():
        value = generation.get(name)
        if isinstance(value, int | float) and isinstance(value, kind) and not isinstance(value, bool):
            found["max_tokens" if name == "max_new_tokens" else name] = value
    return found


__all__ = ["FIELDS", "read_generation_config", "sampling_defaults"]
