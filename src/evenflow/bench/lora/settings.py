"""Models and LoRA ranks to measure with, by name: ours, sized for two cores, and S-LoRA's, true and scaled. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evenflow.bench.replay.slora_settings import SLoRASetting
from evenflow.bench.replay.slora_settings import setting as published_setting
from evenflow.serving.core.shape import ModelShape

OURS: Mapping[str, SLoRASetting] = MappingProxyType(
    {
        one.name: one
        for one in (
            SLoRASetting("135m", "a random Llama of 135 M", ModelShape(12, 1024, 2816, 16, 4, 64, 512), (64, 32, 16, 8)),
            SLoRASetting("135m-r8", "a random Llama of 135 M", ModelShape(12, 1024, 2816, 16, 4, 64, 512), (8,)),
            SLoRASetting("tiny", "two layers of width 64, for tests", ModelShape(2, 64, 112, 4, 2, 16, 320), (8, 4, 2, 1)),
        )
    }
)
"""Settings of our own: the model of the other benchmarks with S2's ranks and with S1's."""


def setting(name: str) -> SLoRASetting:
    """One of OURS or of S-LoRA's (``S2``, ``S2/4``). Raises RegistryError, ConfigError."""
    return OURS[name] if name in OURS else published_setting(name)


def model_words(name: str) -> dict[str, Any]:
    """config.json of a setting's random model."""
    shape = setting(name).shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
    }


def model_folder(cache_dir: Path, name: str, dtype: str) -> Path:
    """Where the setting's random model is kept."""
    key = hashlib.sha256(json.dumps([model_words(name), dtype], sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir / f"model-{key}"


__all__ = ["OURS", "model_folder", "model_words", "setting"]
