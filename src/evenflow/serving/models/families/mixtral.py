"""Mixtral: Mistral with a mixture of experts in every layer, whose chosen probabilities are renormalised."""

from evenflow.serving.models.family import ModelFamily
from evenflow.serving.models.fields import Fields
from evenflow.serving.models.mixture import Mixture, MixtureNames, read_mixture


def _mixture(fields: Fields) -> Mixture:
    names = MixtureNames(block="block_sparse_moe", gate="w1", up="w3", down="w2")
    return read_mixture(fields, num_experts=8, num_chosen=2, width_field="intermediate_size", is_renormalised=True, names=names)


FAMILY = ModelFamily(
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    published="Mixtral 8x7B and 8x22B",
    default_num_kv_heads=8,
    default_norm_eps=1e-5,
    default_theta=1e6,
    sliding_window="always",
    honours=frozenset({"num_local_experts"}),
    mixture=_mixture,
    mlp="evenflow.serving.models.experts:Experts",
)
