"""The model families that can be served, by the architecture's name, and what tells them apart. No torch.

A family that is nearly Llama is one more entry here. One that is not names a decoder class of its own, which is
imported when the first model of the family is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evenflow.base.errors import ModelError

_DECODER = "evenflow.serving.models.decoder:Decoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """How to read a family's ``config.json``. Defaults for missing fields are those of transformers' config classes."""

    architecture: str
    """Its name in ``architectures``."""
    model_type: str
    """Its name in ``model_type``."""
    reads_attention_bias: bool = False
    """True: ``attention_bias`` says whether q, k, v and o have a bias. Else the field means nothing."""
    has_qkv_bias: bool = False
    """True: q, k and v always have a bias."""
    reads_mlp_bias: bool = False
    """True: ``mlp_bias`` says whether the three linears of the MLP have a bias. Else the field means nothing."""
    has_qk_norm: bool = False
    """True: RMS norm on every query and key head before rope."""
    default_num_kv_heads: int | None = None
    """``num_key_value_heads`` where it is missing; None: as many as attention heads."""
    default_head_dim: int | None = None
    """``head_dim`` where it is missing; None: hidden size divided by attention heads."""
    sliding_window: Literal["layer types", "if used", "always"] = "layer types"
    """When the field ``sliding_window`` counts: where ``layer_types`` names sliding layers; if ``use_sliding_window`` is
    true; or unless it is null."""
    decoder: str = _DECODER
    """The class that computes it, as "module:attribute"."""

    def decoder_class(self) -> Any:
        """Import and return the class; it takes what ``Decoder`` takes."""
        module, _, attribute = self.decoder.partition(":")
        return getattr(importlib.import_module(module), attribute)


FAMILIES: Mapping[str, ModelFamily] = {
    family.architecture: family
    for family in (
        ModelFamily(architecture="LlamaForCausalLM", model_type="llama", reads_attention_bias=True, reads_mlp_bias=True),
        ModelFamily(architecture="MistralForCausalLM", model_type="mistral", default_num_kv_heads=8, sliding_window="always"),
        ModelFamily(architecture="Qwen2ForCausalLM", model_type="qwen2", has_qkv_bias=True, sliding_window="if used"),
        ModelFamily(
            architecture="Qwen3ForCausalLM",
            model_type="qwen3",
            reads_attention_bias=True,
            has_qk_norm=True,
            default_head_dim=128,
            sliding_window="if used",
        ),
    )
}
"""By architecture."""


def family_of(config: Mapping[str, Any]) -> ModelFamily:
    """The family that a parsed ``config.json`` names. Raises ModelError if it names none, an unknown one or two."""
    by_type = {family.model_type: family for family in FAMILIES.values()}
    given, model_type = config.get("architectures"), config.get("model_type")
    if model_type is not None and (not isinstance(model_type, str) or model_type not in by_type):
        raise ModelError(f"model_type is {model_type!r}; supported: {', '.join(by_type)}")
    if not given:
        if model_type is None:
            raise ModelError("neither architectures nor model_type is given; it is no transformers model")
        return by_type[model_type]
    if not isinstance(given, list) or len(given) != 1 or given[0] not in tuple(FAMILIES):
        raise ModelError(f"architectures is {given!r}; supported: one of {', '.join(FAMILIES)}")
    if model_type is not None and by_type[model_type].architecture != given[0]:
        raise ModelError(f"model_type is {model_type!r} but architectures is {given!r}")
    return FAMILIES[given[0]]


__all__ = ["FAMILIES", "ModelFamily", "family_of"]
