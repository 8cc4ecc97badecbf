"""The model families that can be served, by the architecture's name. No torch.

A family is one file in ``families`` and one entry of ``_FILES``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from evenflow.base.errors import ModelError
from evenflow.serving.models.family import ModelFamily

_FILES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "granite",
    "phi3",
    "smollm3",
    "olmo2",
    "olmo3",
    "glm4",
    "helium",
    "gemma",
    "gemma2",
    "gemma3",
    "glm",
    "seed_oss",
    "ernie4_5",
    "cohere",
    "cohere2",
    "exaone4",
    "ministral",
    "hyperclovax",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
)
"""Modules of ``families``, each of which holds a FAMILY."""


def _read_files() -> Mapping[str, ModelFamily]:
    found: dict[str, ModelFamily] = {}
    for name in _FILES:
        family: ModelFamily = importlib.import_module(f"evenflow.serving.models.families.{name}").FAMILY
        assert family.architecture not in found, f"{family.architecture} is registered twice"
        found[family.architecture] = family
    return found


FAMILIES: Mapping[str, ModelFamily] = _read_files()
"""By architecture."""


def family_of(config: Mapping[str, Any], families: Mapping[str, ModelFamily] = FAMILIES) -> ModelFamily:
    """The family that a parsed ``config.json`` names. Raises ModelError if it names none, an unknown one or two."""
    by_type = {family.model_type: family for family in families.values()}
    given, model_type = config.get("architectures"), config.get("model_type")
    if model_type is not None and (not isinstance(model_type, str) or model_type not in by_type):
        raise ModelError(f"model_type is {model_type!r}; supported: {', '.join(by_type)}")
    if not given:
        if model_type is None:
            raise ModelError("neither architectures nor model_type is given; it is no transformers model")
        return by_type[model_type]
    if not isinstance(given, list) or len(given) != 1 or given[0] not in tuple(families):
        raise ModelError(f"architectures is {given!r}; supported: one of {', '.join(families)}")
    if model_type is not None and by_type[model_type].architecture != given[0]:
        raise ModelError(f"model_type is {model_type!r} but architectures is {given!r}")
    return families[given[0]]


__all__ = ["FAMILIES", "family_of"]
