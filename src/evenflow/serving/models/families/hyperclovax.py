"""HyperCLOVA X SEED: Granite's multipliers, and norms around attention and MLP."""

from evenflow.serving.models.family import ModelFamily, Traits
from evenflow.serving.models.fields import Fields


def _traits(fields: Fields) -> Traits:
    if not fields.flag("use_post_norm", True):
        fields.refuse("use_post_norm is False; supported: true")
    return Traits(
        embedding_multiplier=fields.number("embedding_multiplier", 1.0),
        residual_multiplier=fields.number("residual_multiplier", 1.0),
        attention_scale=fields.optional_number("attention_multiplier"),
        logits_multiplier=fields.number("logits_scaling", 1.0),
    )


FAMILY = ModelFamily(
    architecture="HyperCLOVAXForCausalLM",
    model_type="hyperclovax",
    published="HyperCLOVA X SEED Think 14B",
    reads_attention_bias=True,
    reads_mlp_bias=True,
    honours=frozenset({"embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"}),
    traits=_traits,
    norms=("input_layernorm", "post_norm1", "post_attention_layernorm", "post_norm2"),
    layer="evenflow.serving.models.layer_orders:WeighedNormsAroundLayer",
)
