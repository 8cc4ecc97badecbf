"""What the name of a tensor in an adapter's file says, however its trainer spells it. No torch.

PEFT writes ``base_model.model.`` before the module's path and, where a text model is part of a larger one,
``language_model.`` inside it. Files that were made for other programs lack either, or keep the adapter's name ("default").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from evenflow.serving.core.shape import BLOCK_OF, MODULES

EMBEDDING, HEAD, LAST_NORM = "model.embed_tokens", "lm_head", "model.norm"
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Linears that stand for several of MODULES: their outputs, one after another."""
SHARED_EXPERT = "mlp.shared_expert"
"""The MLP that all tokens go to, in a layer with a mixture of experts."""
USUAL_NORMS = ("input_layernorm", "post_attention_layernorm")
"""Norms of a Llama layer. Other families have others, which the base model's weights name."""

_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "B bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_embedding_A": "embedding A",
    "lora_embedding_B": "embedding B",
    "base_layer.weight": "base weight",
    "token_adapter.trainable_tokens_delta": "tokens",
    "weight": "weight",
}
_NAME = re.compile(
    r"(?P<path>.+?)\.(?P<part>" + "|".join(re.escape(part) for part in sorted(_PARTS, key=len, reverse=True)) + ")"
)
_ADAPTER_NAME = re.compile(
    r"(lora_A|lora_B|lora_magnitude_vector|lora_embedding_[AB]|modules_to_save|trainable_tokens_delta)\.default"
)
_LAYER = re.compile(r"model\.layers\.(?P<layer>0|[1-9][0-9]{0,5})\.(?P<rest>[\w.]+)")


@dataclass(frozen=True, slots=True)
class TensorName:
    """One tensor's place: the module it belongs to, and what it is of it."""

    path: str
    """As this project names modules: ``model.layers.3.mlp.up_proj``, ``model.embed_tokens``, ``lm_head``, ``model.norm``."""
    spelled: str
    """The module's path as the file has it, without ``base_model.model.``: what target_modules was matched with."""
    part: str
    """One of the values of ``_PARTS``."""
    layer: int = -1
    module: str = ""
    """Linear or norm of the layer, or empty."""


def parse_name(name: str) -> TensorName | None:
    """What ``name`` says; None if it names nothing that this project knows."""
    split = split_name(name)
    if split is None:
        return None
    spelled, part = split
    path = usual_path(spelled)
    if path in (EMBEDDING, HEAD, LAST_NORM):
        return TensorName(path, spelled, part)
    in_layer = _LAYER.fullmatch(path)
    if in_layer is None:
        return None
    block, _, module = in_layer["rest"].rpartition(".")
    if ("norm" in module and not block) or block == block_of(module) or (block == SHARED_EXPERT and block_of(module) == "mlp"):
        return TensorName(path, spelled, part, int(in_layer["layer"]), module)
    return None


def split_name(name: str) -> tuple[str, str] | None:
    """(the module's path as it is spelled, what the tensor is of it); None if no adapter has such a tensor."""
    name = _ADAPTER_NAME.sub(r"\1", name).replace(".modules_to_save.", ".")
    match = _NAME.fullmatch(name.removeprefix("base_model.model."))
    return None if match is None else (match["path"], _PARTS[match["part"]])


def usual_path(spelled: str) -> str:
    """The path of a module without what wraps the text model."""
    path = ".".join(piece for piece in spelled.split(".") if piece != "language_model")
    return path if path == HEAD or path.startswith("model.") else f"model.{path}"


def block_of(module: str) -> str:
    """The block of a decoder layer that holds a linear, a fused one too; "-" for what is none."""
    of = FUSED.get(module, (module,))[0]
    return BLOCK_OF[of] if of in MODULES else "-"


def linear_path(layer: int, module: str, mlp_block: str = "mlp") -> str:
    """Path of a linear, fused or not, in a layer whose MLP is ``mlp_block``."""
    block = block_of(module)
    return f"model.layers.{layer}.{mlp_block if block == 'mlp' else block}.{module}"


__all__ = [
    *("EMBEDDING", "FUSED", "HEAD", "LAST_NORM", "USUAL_NORMS"),
    *("TensorName", "block_of", "linear_path", "parse_name", "split_name", "usual_path"),
]
