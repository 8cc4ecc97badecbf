"""Random models of any size in ordinary folders: for tests, benchmarks and first steps, without a download.

Weights are noise, scaled so that activations keep their size from layer to layer and logits differ
clearly between tokens. Readable by transformers, written without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evenflow.serving.models.model_config import ModelConfig, load_config
from evenflow.serving.models.random.random_tokenizer import make_tokenizer
from evenflow.serving.models.weights import expected_tensors

TINY: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
}
"""A model of 0.1 M parameters, in config.json's words."""

LLAMA_135M: Mapping[str, Any] = {
    **TINY,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
}
"""The model of the benchmarks: as deep and wide as a real 135 M decoder, with a vocabulary of a few hundred."""


def make_model(
    path: str | Path,
    base: Mapping[str, Any] = TINY,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    num_shards: int = 1,
    **changes: Any,
) -> ModelConfig:
    """Write a random model folder, with a tokenizer where it fits, and return its config.

    ``changes`` are fields of config.json. A vocabulary below 258 has no room for a tokenizer.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    raw = {**base, "torch_dtype": str(dtype).removeprefix("torch."), **changes}
    (folder / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    config = load_config(folder)
    if config.shape.vocab_size >= 258:
        make_tokenizer(folder, config.shape.vocab_size)
    tensors = random_tensors(config, seed, dtype)
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return config
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return config


def random_tensors(config: ModelConfig, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor of the model under its Hugging Face name: unit-gain matrices, norms near one, small biases."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in expected_tensors(config).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1 and name.endswith(".weight"):
            value = 1 + 0.1 * noise
        elif name.endswith(".bias"):
            value = 0.1 * noise
        elif name == "model.embed_tokens.weight":
            value = noise
        else:
            value = noise / math.sqrt(shape[-1])
        if name == "lm_head.weight" or (name == "model.embed_tokens.weight" and config.tie_word_embeddings):
            value = 3.0 * noise / math.sqrt(shape[-1])
        tensors[name] = value.to(dtype).contiguous()
    return tensors


__all__ = ["LLAMA_135M", "TINY", "make_model", "random_tensors"]
