"""EXAONE 4: norms behind attention and MLP and on every head; where some layers see a window, the others do not rotate."""

from dataclasses import replace

from evenflow.serving.models.family import LayerKind, ModelFamily
from evenflow.serving.models.fields import Fields


def _layers(fields: Fields, layers: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    if fields.raw.get("sliding_window", 4096) is None:
        return tuple(replace(kind, window=None) for kind in layers)
    if fields.raw.get("layer_types") is None:
        window, pattern = fields.integer("sliding_window", 4096), fields.integer("sliding_window_pattern", 4)
        slides = [(index + 1) % pattern != 0 for index in range(len(layers))]
        layers = tuple(replace(kind, window=window if one else None) for kind, one in zip(layers, slides))
    return tuple(kind if kind.window is not None else replace(kind, rope=None) for kind in layers)


FAMILY = ModelFamily(
    architecture="Exaone4ForCausalLM",
    model_type="exaone4",
    published="EXAONE 4.0",
    default_num_kv_heads=32,
    default_norm_eps=1e-5,
    layers=_layers,
    qk_norm="heads",
    norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    layer="evenflow.serving.models.layer_orders:NormsAfterLayer",
)
