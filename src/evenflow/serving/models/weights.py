"""From safetensors to the matrices a decoder multiplies with: fused, in the serving dtype, on the device.

Strict: every tensor of the file is used or the model is refused, and so is a model that lacks one.
Legend: H hidden, V vocabulary; matrices are [output, input].
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from evenflow.base.errors import ConfigError, ModelError
from evenflow.base.progress import Tell, tell_nobody
from evenflow.serving.backends.devices.weight_products import Weight
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.matrices import Matrices
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.stored.stored_weights import StoredWeights, open_weights
from evenflow.serving.quant.matrix_cache import MatrixCache
from evenflow.serving.quant.schemes import Quantization

log = logging.getLogger("evenflow.engine")

_ROTARY_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""A buffer that old Llama checkpoints hold; it is not needed, since it follows from the config."""


@dataclass(slots=True)
class LayerWeights:
    """One decoder layer. qkv is [q | k | v] and gate_up [gate | up], rows one after another."""

    attention_norm: torch.Tensor
    qkv: Weight
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: Weight
    o_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: Weight
    gate_up_bias: torch.Tensor | None
    down: Weight
    down_bias: torch.Tensor | None


@dataclass(slots=True)
class ModelWeights:
    """A whole model. ``layers`` is produced, and can be consumed, one layer at a time."""

    embedding: Weight
    layers: deque[LayerWeights]
    norm: torch.Tensor
    head: Weight
    """The embedding itself where they are tied."""


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a folder with this config must hold."""
    shape = config.shape
    hidden = shape.hidden_size
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        tensors |= {prefix + "input_layernorm.weight": (hidden,), prefix + "post_attention_layernorm.weight": (hidden,)}
        for module, has_bias in (
            ("self_attn.q_proj", config.has_qkv_bias),
            ("self_attn.k_proj", config.has_qkv_bias),
            ("self_attn.v_proj", config.has_qkv_bias),
            ("self_attn.o_proj", config.has_o_bias),
            ("mlp.gate_proj", config.has_mlp_bias),
            ("mlp.up_proj", config.has_mlp_bias),
            ("mlp.down_proj", config.has_mlp_bias),
        ):
            inputs, outputs = shape.module_widths(module.split(".")[1])
            tensors[prefix + module + ".weight"] = (outputs, inputs)
            if has_bias:
                tensors[prefix + module + ".bias"] = (outputs,)
        if config.has_qk_norm:
            tensors |= {prefix + f"self_attn.{which}_norm.weight": (shape.head_dim,) for which in "qk"}
    tensors["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (shape.vocab_size, hidden)
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
    with open_weights(path) as stored:
        _check(stored.shapes, config, Path(path))
        if quantization is not None and stored.is_quantised:
            raise ConfigError(
                f"quantization is {quantization.name!r}, and the weights are quantised already "
                f"({stored.description}): leave it out"
            )
        log.info("weights: %s%s", stored.description, "" if quantization is None else f", quantised to {quantization.name}")
        matrices = Matrices(stored, dtype, device, quantization, cache)
        source = _Source(stored, dtype, device, matrices)
        vocabulary = shard.vocabulary()
        embedding: Weight
        if not config.tie_word_embeddings:
            embedding = source.stacked(["model.embed_tokens.weight"], [vocabulary])
            head = matrices.vocabulary("lm_head.weight", vocabulary)
        else:
            head = embedding = matrices.vocabulary("model.embed_tokens.weight", vocabulary)
            if "lm_head.weight" in stored.shapes and not torch.equal(
                *(source.stacked([name], [vocabulary]) for name in ("lm_head.weight", "model.embed_tokens.weight"))
            ):
                raise ModelError(
                    f"{path}: tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight"
                )
        what, num_layers = "loading weights" if quantization is None else "quantising weights", config.shape.num_layers
        layers: deque[LayerWeights] = deque()
        tell(what, 0, num_layers)
        for layer in _layers(source, config, shard):
            layers.append(layer)
            tell(what, len(layers), num_layers)
        return ModelWeights(embedding=embedding, layers=layers, norm=source.tensor("model.norm.weight"), head=head)


class _Source:
    """Tensors of a checkpoint in the serving dtype on the device, alone or stacked; matrices in the form of products."""

    def __init__(self, stored: StoredWeights, dtype: torch.dtype, device: torch.device, matrices: Matrices) -> None:
        self._stored, self._dtype, self._device, self.matrices = stored, dtype, device, matrices

    def tensor(self, name: str) -> torch.Tensor:
        # Always a copy, even with dtype and device unchanged, since the mapped file is closed after loading.
        return self._stored.tensor(name).to(device=self._device, dtype=self._dtype, copy=True)

    def stacked(self, names: list[str], rows: list[range]) -> torch.Tensor:
        """The given rows of each of the named tensors, one after another, unquantised."""
        return self.matrices.plain(names, rows)

    def matrix(self, names: list[str], rows: list[range]) -> Weight:
        """The given rows of each of the named matrices, one matrix after another."""
        return self.matrices.linear(names, rows)

    def columns(self, name: str, columns: range) -> Weight:
        """These columns of a matrix."""
        return self.matrices.linear([name], [range(self._stored.shapes[name][0])], columns)


def _layers(source: _Source, config: ModelConfig, shard: Shard) -> Iterator[LayerWeights]:
    qkv_rows = [shard.outputs(f"{which}_proj") for which in "qkv"]
    gate_up_rows = [shard.outputs(f"{which}_proj") for which in ("gate", "up")]
    holds_biases = shard.rank == 0  # o and down are summed over ranks, so that only one rank may add the bias.
    for layer in range(config.shape.num_layers):
        prefix = f"model.layers.{layer}."
        qkv = [prefix + f"self_attn.{which}_proj" for which in "qkv"]
        gate_up = [prefix + f"mlp.{which}_proj" for which in ("gate", "up")]
        o, down = prefix + "self_attn.o_proj", prefix + "mlp.down_proj"
        yield LayerWeights(
            attention_norm=source.tensor(prefix + "input_layernorm.weight"),
            qkv=source.matrix([name + ".weight" for name in qkv], qkv_rows),
            qkv_bias=source.stacked([name + ".bias" for name in qkv], qkv_rows) if config.has_qkv_bias else None,
            q_norm=source.tensor(prefix + "self_attn.q_norm.weight") if config.has_qk_norm else None,
            k_norm=source.tensor(prefix + "self_attn.k_norm.weight") if config.has_qk_norm else None,
            o=source.columns(o + ".weight", shard.inputs("o_proj")),
            o_bias=source.tensor(o + ".bias") if config.has_o_bias and holds_biases else None,
            mlp_norm=source.tensor(prefix + "post_attention_layernorm.weight"),
            gate_up=source.matrix([name + ".weight" for name in gate_up], gate_up_rows),
            gate_up_bias=source.stacked([name + ".bias" for name in gate_up], gate_up_rows) if config.has_mlp_bias else None,
            down=source.columns(down + ".weight", shard.inputs("down_proj")),
            down_bias=source.tensor(down + ".bias") if config.has_mlp_bias and holds_biases else None,
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


__all__ = ["LayerWeights", "ModelWeights", "expected_tensors", "load_weights"]
