"""SmolLM3: every fourth layer does not rotate, and may have a window."""

from dataclasses import replace

from evenflow.serving.models.family import LayerKind, ModelFamily
from evenflow.serving.models.fields import Fields


def _layers(fields: Fields, layers: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    # The field says 1 for a layer that rotates, whatever its name suggests.
    rotates = fields.per_layer("no_rope_layers", len(layers), (0, 1))
    if rotates is None:
        interval = fields.integer("no_rope_layer_interval", 4)
        rotates = [(index + 1) % interval != 0 for index in range(len(layers))]
    layers = tuple(kind if one else replace(kind, rope=None) for kind, one in zip(layers, rotates))
    if fields.raw.get("layer_types") is not None:
        return layers
    is_used = fields.flag("use_sliding_window") and fields.raw.get("sliding_window") is not None
    window = fields.integer("sliding_window", 4096) if is_used else None
    return tuple(replace(kind, window=window if kind.rope is None else None) for kind in layers)


FAMILY = ModelFamily(
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    published="SmolLM 3",
    reads_attention_bias=True,
    reads_mlp_bias=True,
    default_num_kv_heads=4,
    default_theta=2_000_000.0,
    default_is_tied=True,
    sliding_window="if used",
    default_window=None,
    honours=frozenset({"no_rope_layers", "no_rope_layer_interval"}),
    layers=_layers,
)
