"""What a model family is: how its ``config.json`` is read, how its tensors are named, which layer computes it. No torch.

Families differ in a few places, and each place is an object: a row of facts here, a layer class named by import path there.
Nothing in the path of a step asks which family it serves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evenflow.serving.models.fields import Fields
from evenflow.serving.models.mixture import Mixture
from evenflow.serving.models.rope import RopeSpec

Activation = Literal["silu", "gelu", "gelu tanh"]
"""What is applied to the gate of an MLP: silu, the exact gelu, or its approximation by tanh."""

NormKind = Literal["rms", "rms 1 + w", "layer"]
"""RMS norm; RMS norm whose weight is stored less 1; layer norm with a weight and no bias."""

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu tanh",
    "gelu_new": "gelu tanh",
    "gelu_fast": "gelu tanh",
}
"""Names in config.json."""


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What may differ from layer to layer of one model."""

    rope: RopeSpec | None
    """How queries and keys are rotated; None: not at all."""
    window: int | None = None
    """How many tokens a token sees, itself included; None: all before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Numbers of a model's arithmetic that most families do not have. The defaults change nothing."""

    embedding_multiplier: float = 1.0
    """Multiplies what the token embedding says."""
    is_embedding_multiplier_rounded: bool = False
    """True: it is first rounded to the dtype of the weights."""
    residual_multiplier: float = 1.0
    """Multiplies what attention and MLP add to the residual stream."""
    attention_scale: float | None = None
    """Multiplies the scores of attention; None: head_dim to the power of -1/2."""
    attention_softcap: float | None = None
    """c: scores s become c tanh(s / c)."""
    logits_multiplier: float = 1.0
    """Multiplies the logits, before the soft cap."""
    logits_softcap: float | None = None
    """c: logits l become c tanh(l / c)."""


def _no_traits(fields: Fields) -> Traits:
    return Traits()


def _no_mixture(fields: Fields) -> None:
    return None


def _as_they_are(fields: Fields, layers: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    return layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One family. Defaults for missing fields are those of transformers' config classes."""

    architecture: str
    """Its name in ``architectures``."""
    model_type: str
    """Its name in ``model_type``."""
    published: str
    """Models of this family that people know, for the manual."""

    # How config.json is read.
    reads_attention_bias: bool = False
    """True: a field says whether q, k, v and o have a bias. Else they have none, whatever the config holds."""
    attention_bias_field: str = "attention_bias"
    """Its name."""
    default_attention_bias: bool = False
    """That field where it is missing."""
    o_bias_field: str | None = "attention_bias"
    """The field that says whether o has a bias, where one does so for q, k and v; None: it has none."""
    has_qkv_bias: bool = False
    """True: q, k and v always have a bias."""
    reads_mlp_bias: bool = False
    """True: a field says whether the three linears of the MLP have a bias. Else they have none."""
    mlp_bias_field: str = "mlp_bias"
    """Its name."""
    default_num_kv_heads: int | None = None
    """``num_key_value_heads`` where it is missing; None: as many as attention heads."""
    default_head_dim: int | None = None
    """``head_dim`` where it is missing; None: hidden size divided by attention heads."""
    default_theta: float = 10000.0
    """``rope_theta`` where it is missing."""
    default_norm_eps: float = 1e-6
    """The field of the norms' epsilon where it is missing."""
    norm_eps_field: str = "rms_norm_eps"
    """Its name."""
    default_is_tied: bool = False
    """``tie_word_embeddings`` where it is missing."""
    activation_field: str = "hidden_act"
    """Names the activation of the MLP."""
    activations: Mapping[str, Activation] = field(default_factory=lambda: ACTIVATIONS)
    """What the names mean."""
    default_activation: str = "silu"
    """That field where it is missing."""
    sliding_window: Literal["layer types", "if used", "always"] = "layer types"
    """When the field ``sliding_window`` counts: where ``layer_types`` names sliding layers; if ``use_sliding_window`` is
    true; or unless it is null."""
    default_window: int | None = 4096
    """``sliding_window`` where it is missing; None: then no layer has one."""
    full_every: int | None = None
    """Where ``layer_types`` is missing, every layer of this number sees everything and the others a window; None: all do."""
    full_every_field: str | None = None
    """The field that names another number; None: there is none."""
    default_partial: float | None = None
    """``partial_rotary_factor``, the part of every head that is rotated, where it is missing; None: it must be 1."""
    has_rope_per_layer_type: bool = False
    """True: ``rope_parameters`` holds one rope for each of the ``layer_types``; where it does not, what it holds is that of the
    layers that see everything, and the others have a default rope."""
    window_theta_field: str | None = None
    """Where ropes differ by the type of a layer: the base of those with a window; None: ``rope_theta`` is."""
    default_window_theta: float | None = None
    """That base where it is missing; None: ``default_theta``."""
    honours: frozenset[str] = frozenset()
    """Fields among ``model_config.FOREIGN`` that ``traits`` or ``layers`` read; all others must have a value without effect."""
    traits: Callable[[Fields], Traits] = _no_traits
    """Reads what only this family has, noting what is wrong with it."""
    mixture: Callable[[Fields], Mixture | None] = _no_mixture
    """Reads the mixture of experts of a family that has one."""
    layers: Callable[[Fields, tuple[LayerKind, ...]], tuple[LayerKind, ...]] = _as_they_are
    """Changes the kinds of the layers, one for each, as read from the fields that all families share."""

    # What it computes.
    norm: NormKind = "rms"
    """The kind of all norms."""
    qk_norm: Literal["none", "heads", "whole"] = "none"
    """A norm before rope: none, of every query and key head by itself, or of all queries together and all keys together."""
    rotates_neighbours: bool = False
    """True: elements 2i and 2i + 1 of a head are rotated together; else i and i + half of what is rotated."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """The norms of a layer, as its checkpoints name them."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Linears that its checkpoints store in one: that one's name to those that we have, in the order of their rows."""
    layer: str = "evenflow.serving.models.decoder_layer:DecoderLayer"
    """The class of a layer, as "module:attribute": which norms stand where."""
    mlp: str = "evenflow.serving.models.gated_mlp:GatedMLP"
    """The class of what follows attention in a layer, as "module:attribute"; see ``FeedForward`` there."""
    decoder: str = "evenflow.serving.models.decoder:Decoder"
    """The class of the whole, as "module:attribute". Only a model with other inputs or outputs needs its own."""

    def load(self, part: Literal["layer", "mlp", "decoder"]) -> Any:
        """Import and return one of the classes."""
        module, _, attribute = str(getattr(self, part)).partition(":")
        return getattr(importlib.import_module(module), attribute)


__all__ = ["ACTIVATIONS", "Activation", "LayerKind", "ModelFamily", "NormKind", "Traits"]
