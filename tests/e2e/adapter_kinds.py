"""Adapters of every kind that is served, written by hand: quick, and without importing peft."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.random.random_adapter import make_adapter

ROOT = "base_model.model."


def make_kinds(folder: Path, config: ModelConfig) -> dict[str, Path]:
    """One adapter of each kind, by name."""
    shape, generator = config.shape, torch.Generator().manual_seed(5)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    vocab, hidden = shape.vocab_size, shape.hidden_size
    return {
        "head": _write(
            folder / "head",
            config,
            {ROOT + "lm_head.lora_A.weight": noise(3, hidden) / 8, ROOT + "lm_head.lora_B.weight": noise(vocab, 3)},
            target_modules=["q_proj", "lm_head"],
        ),
        "embedding": _write(
            folder / "embedding",
            config,
            {
                ROOT + "model.embed_tokens.lora_embedding_A": noise(3, vocab),
                ROOT + "model.embed_tokens.lora_embedding_B": noise(hidden, 3) / 2,
            },
            target_modules=["v_proj", "embed_tokens"],
        ),
        "dora": _write(folder / "dora", config, _of_outputs(config, "lora_magnitude_vector", noise, 1.0), use_dora=True),
        "bias": _write(folder / "bias", config, _of_outputs(config, "lora_B.bias", noise, 0.0), lora_bias=True),
        "norms": _write(
            folder / "norms",
            config,
            {
                ROOT + "model.norm.weight": 1 + noise(hidden) / 2,
                ROOT + "model.layers.1.input_layernorm.weight": 1 + noise(hidden) / 2,
            },
            modules_to_save=["norm", "input_layernorm"],
        ),
        "saved": _write(
            folder / "saved",
            config,
            {ROOT + "lm_head.weight": noise(vocab, hidden) / 8, ROOT + "model.embed_tokens.weight": noise(vocab, hidden)},
            modules_to_save=["lm_head", "embed_tokens"],
        ),
        "tokens": _write(
            folder / "tokens",
            config,
            {ROOT + "model.embed_tokens.token_adapter.trainable_tokens_delta": 2 * noise(3, hidden)},
            trainable_token_indices=[8, 5, 7],
        ),
    }


def _write(folder: Path, config: ModelConfig, more: dict[str, torch.Tensor], **fields: object) -> Path:
    target_modules = fields.pop("target_modules", ["q_proj", "o_proj", "up_proj"])
    make_adapter(folder, config, lora_rank=3, target_modules=target_modules, seed=len(folder.name), **fields)
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), **more}, file)
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == list(target_modules)
    return folder


def _of_outputs(config, name, noise, middle) -> dict[str, torch.Tensor]:
    widths = {module: config.shape.module_widths(module)[1] for module in ("q_proj", "o_proj", "up_proj")}
    block = {"q_proj": "self_attn", "o_proj": "self_attn", "up_proj": "mlp"}
    return {
        f"{ROOT}model.layers.{layer}.{block[m]}.{m}.{name}": middle + noise(width) / 3
        for layer in range(config.shape.num_layers)
        for m, width in widths.items()
    }
