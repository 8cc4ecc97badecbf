"""Mixtral: Mistral with a mixture of experts in every layer, whose chosen probabilities are renormalised."""

from dataclasses import replace

from evenflow.serving.models.family import LayerKind, ModelFamily
from evenflow.serving.models.fields import Fields
from evenflow.serving.models.mixture import Mixture, MixtureNames, read_mixture


def _mixture(fields: Fields) -> Mixture:
    names = MixtureNames(block="block_sparse_moe", gate="w1", up="w3", down="w2")
    return read_mixture(fields, num_experts=8, num_chosen=2, width_field="intermediate_size", is_renormalised=True, names=names)


def _layers(fields: Fields, layers: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """A window that is given is every layer's; unlike Mistral's, a missing one is none."""
    window = fields.integer("sliding_window") if fields.raw.get("sliding_window") is not None else None
    return tuple(replace(kind, window=window) for kind in layers)


FAMILY = ModelFamily(
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    published="Mixtral 8x7B and 8x22B",
    default_num_kv_heads=8,
    default_norm_eps=1e-5,
    default_theta=1e6,
    honours=frozenset({"num_local_experts"}),
    mixture=_mixture,
    layers=_layers,
    mlp="evenflow.serving.models.experts:Experts",
)
