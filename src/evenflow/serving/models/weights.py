"""From safetensors to the matrices a decoder multiplies with: fused, in the serving dtype, on the device.

Strict: every tensor of the file is used or the model is refused, and so is a model that lacks one.
Legend: H hidden, V vocabulary; matrices are [output, input].
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from evenflow.base.errors import ConfigError, ModelError
from evenflow.base.progress import Tell, tell_nobody
from evenflow.serving.backends.devices.weight_products import Weight
from evenflow.serving.core.shape import BLOCK_OF
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.attention_block import AttentionBlock
from evenflow.serving.models.decoder_layer import LayerWeights
from evenflow.serving.models.gated_mlp import FeedForward
from evenflow.serving.models.matrices import Matrices
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.stored.fused_weights import FusedWeights
from evenflow.serving.models.stored.stacked_experts import each_expert_by_itself
from evenflow.serving.models.stored.stored_weights import StoredWeights, open_weights
from evenflow.serving.models.weight_source import WeightSource
from evenflow.serving.quant.matrix_cache import MatrixCache
from evenflow.serving.quant.schemes import Quantization

log = logging.getLogger("evenflow.engine")

_ROTARY_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""A buffer that old Llama checkpoints hold; it is not needed, since it follows from the config."""


@dataclass(slots=True)
class ModelWeights:
    """A whole model. ``layers`` is produced, and can be consumed, one layer at a time."""

    embedding: Weight
    layers: deque[LayerWeights]
    norm: torch.Tensor
    head: Weight
    """The embedding itself where they are tied."""


def _fused_pieces(config: ModelConfig) -> dict[str, tuple[str, range]]:
    """By the name of a tensor that is stored in another one: that one's name, and which rows of it."""
    pieces: dict[str, tuple[str, range]] = {}
    biases = {"self_attn": config.has_qkv_bias, "mlp": config.has_mlp_bias}
    for layer in range(config.shape.num_layers):
        for whole, modules in config.family.fused.items():
            block, first = BLOCK_OF[modules[0]], 0
            for module in modules:
                rows = range(first, first + config.shape.module_widths(module)[1])
                first = rows.stop
                for kind in ("weight", "bias") if biases[block] else ("weight",):
                    prefix = f"model.layers.{layer}.{block}."
                    pieces[f"{prefix}{module}.{kind}"] = f"{prefix}{whole}.{kind}", rows
    return pieces


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a folder with this config must hold."""
    shape, family = config.shape, config.family
    hidden = shape.hidden_size
    mlp: type[FeedForward] = family.load("mlp")
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_layers):
        found: dict[str, tuple[int, ...]] = {f"{norm}.weight": (hidden,) for norm in family.norms}
        found |= AttentionBlock.tensors(config, layer) | mlp.tensors(config, layer)
        tensors |= {f"model.layers.{layer}.{name}": of for name, of in found.items()}
    tensors["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (shape.vocab_size, hidden)
    for name, (whole, rows) in _fused_pieces(config).items():
        tensors[whole] = (rows.stop, *tensors.pop(name)[1:])
    return tensors


def load_weights(
    path: str | Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    shard: Shard | None = None,
    quantization: Quantization | None = None,
    cache: MatrixCache | None = None,
    tell: Tell = tell_nobody,
) -> ModelWeights:
    """Read the folder's weights, or one rank's shard. Raises ModelError naming missing, left-over or misshapen tensors.

    ``quantization``: what becomes of the matrices; None: they stay as they are stored. ``cache``: what was made before.
    """
    shard = shard or Shard(config.shape, 0, 1)
    with open_weights(path) as opened:
        stored: StoredWeights = opened
        if config.mixture is not None:
            stored = each_expert_by_itself(stored, config.mixture, config.shape.hidden_size)
        _check(stored.shapes, config, Path(path))
        if quantization is not None and stored.is_quantised:
            raise ConfigError(
                f"quantization is {quantization.name!r}, and the weights are quantised already "
                f"({stored.description}): leave it out"
            )
        log.info("weights: %s%s", stored.description, "" if quantization is None else f", quantised to {quantization.name}")
        pieces = _fused_pieces(config)
        if pieces:
            stored = FusedWeights(stored, pieces)
        matrices = Matrices(stored, dtype, device, quantization, cache)
        source = WeightSource(stored, matrices, dtype, device, shard)
        vocabulary = shard.vocabulary()
        embedding: Weight
        if not config.tie_word_embeddings:
            embedding = source.part("model.embed_tokens.weight", vocabulary)
            head = matrices.vocabulary("lm_head.weight", vocabulary)
        else:
            head = embedding = matrices.vocabulary("model.embed_tokens.weight", vocabulary)
            if "lm_head.weight" in stored.shapes and not torch.equal(
                *(source.part(name, vocabulary) for name in ("lm_head.weight", "model.embed_tokens.weight"))
            ):
                raise ModelError(
                    f"{path}: tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight"
                )
        what, num_layers = "loading weights" if quantization is None else "quantising weights", config.shape.num_layers
        layers: deque[LayerWeights] = deque()
        tell(what, 0, num_layers)
        for layer in range(num_layers):
            layers.append(_layer(source, config, layer))
            tell(what, layer + 1, num_layers)
        return ModelWeights(embedding=embedding, layers=layers, norm=source.tensor("model.norm.weight"), head=head)


def _layer(source: WeightSource, config: ModelConfig, layer: int) -> LayerWeights:
    mlp: type[FeedForward] = config.family.load("mlp")
    return LayerWeights(
        norms={name: source.tensor(f"model.layers.{layer}.{name}.weight") for name in config.family.norms},
        attention=AttentionBlock.read(source, config, layer),
        mlp=mlp.read(source, config, layer),
    )


def _check(found: Mapping[str, tuple[int, ...]], config: ModelConfig, path: Path) -> None:
    expected = expected_tensors(config)
    missing = sorted(set(expected) - set(found))
    if missing:
        raise ModelError(f"{path}: {len(missing)} tensors are missing: {_some(missing)}")
    allowed = set(expected) | ({"lm_head.weight"} if config.tie_word_embeddings else set())
    left = sorted(name for name in found if name not in allowed and not _ROTARY_BUFFER.fullmatch(name))
    if left:
        raise ModelError(
            f"{path}: {len(left)} tensors belong to no part of a {config.architecture} of this config: {_some(left)}"
        )
    wrong = [f"{n} is {list(found[n])}, the config says {list(s)}" for n, s in expected.items() if found[n] != s]
    if wrong:
        raise ModelError(f"{path}: {len(wrong)} tensors have another shape: {_some(wrong)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


__all__ = ["ModelWeights", "expected_tensors", "load_weights"]
