"""Ministral 8B: Mistral whose layers see a window each or everything, as ``layer_types`` says."""

from dataclasses import replace

from evenflow.serving.models.family import LayerKind, ModelFamily
from evenflow.serving.models.fields import Fields


def _layers(fields: Fields, layers: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    if fields.raw.get("layer_types") is not None or fields.raw.get("sliding_window", 4096) is None:
        return layers
    window = fields.integer("sliding_window", 4096)
    return tuple(replace(kind, window=window) for kind in layers)


FAMILY = ModelFamily(
    architecture="MinistralForCausalLM",
    model_type="ministral",
    published="Ministral 8B (2410)",
    default_num_kv_heads=8,
    layers=_layers,
)
