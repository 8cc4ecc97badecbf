"""OLMoE: a mixture of experts in every layer, and a norm over all queries and all keys."""

from evenflow.serving.models.family import ModelFamily
from evenflow.serving.models.fields import Fields
from evenflow.serving.models.mixture import Mixture, read_mixture


def _mixture(fields: Fields) -> Mixture:
    clip = fields.raw.get("clip_qkv")
    if clip is not None:
        fields.refuse(f"clip_qkv is {clip!r}; supported: null")
    return read_mixture(fields, num_experts=64, num_chosen=8, width_field="intermediate_size")


FAMILY = ModelFamily(
    architecture="OlmoeForCausalLM",
    model_type="olmoe",
    published="OLMoE 1B-7B",
    reads_attention_bias=True,
    qk_norm="whole",
    default_norm_eps=1e-5,
    honours=frozenset({"num_experts", "num_local_experts"}),
    mixture=_mixture,
    mlp="evenflow.serving.models.experts:Experts",
)
