"""Cosines and sines against transformers: published rope fields, and a matrix of generated ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from evenflow.base.errors import ModelError
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.rope import read_rope
from evenflow.serving.models.rope_table import rope_table

FACTORS = [1.0 + i / 16 for i in range(32)]
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 2": {},
    "Code Llama": {"rope_theta": 1e6, "max_position_embeddings": 16384},
    "LongChat": {"rope_scaling": {"type": "linear", "factor": 8.0}, "max_position_embeddings": 16384},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "Llama 3.1": {
        "rope_theta": 5e5,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Qwen 2.5": {
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    },
    "Yarn Llama 2": {
        "max_position_embeddings": 65536,
        "rope_scaling": {"factor": 16.0, "original_max_position_embeddings": 4096, "type": "yarn", "finetuned": True},
    },
    "DeepSeek V3's fields": {
        "max_position_embeddings": 163840,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
    },
    "gpt-oss's fields": {
        "rope_theta": 150000,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
    },
    "Phi 3's fields": {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "short_factor": FACTORS, "long_factor": [3 * f for f in FACTORS]},
    },
    "longrope with a factor": {
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 4096,
            "short_factor": FACTORS,
            "long_factor": FACTORS[::-1],
        },
    },
    "a kind of null": {"rope_scaling": {"rope_type": None, "type": "linear", "factor": 2.0}},
    "fields of another kind": {"rope_scaling": {"type": "linear", "factor": 2.0, "original_max_position_embeddings": 2048}},
}
SHAPE: dict = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096}


def theirs(fields: dict, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of transformers for positions 0 .. length - 1, of the first half of a head."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    made = {**SHAPE, **fields}
    scaling = made.get("rope_scaling")
    if scaling is not None and scaling.get("rope_type", "") is None:
        made["rope_scaling"] = {key: value for key, value in scaling.items() if key != "rope_type"}
    config = LlamaConfig(num_hidden_layers=1, num_key_value_heads=4, intermediate_size=16, vocab_size=32, **made)
    embedding = LlamaRotaryEmbedding(config)
    cos, sin = embedding(torch.zeros(1, 1), torch.arange(length)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half], sin[0, :, :half]


def check(fields: dict, length: int, head_dim: int = 64, scale: float = 1.0) -> None:
    given = {**SHAPE, **fields}
    spec = read_rope(given, given["max_position_embeddings"], head_dim)
    for ours, expected in zip(rope_table(spec, head_dim, length), theirs(fields, length)):
        torch.testing.assert_close(ours, expected * scale, rtol=1e-5, atol=3e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fields(name):
    check(PUBLISHED[name], 600)


def test_longrope_has_the_long_factors_where_longer_sequences_are_served():
    fields = PUBLISHED["Phi 3's fields"]
    check(fields, 4096)
    check(fields, 4200)
    config = parse_config({**SHAPE, **fields, "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1,
                           "intermediate_size": 16, "vocab_size": 32})  # fmt: skip
    assert config.context_length() == 4096
    assert config.context_length(131072) == 131072
    with pytest.raises(ModelError, match="allowed: at most 131072"):
        config.context_length(131073)


def test_attn_factor_multiplies_the_magnitude():
    """DeepSeek-R1-0528-Qwen3-8B: 0.878 takes back what a factor of 4 adds, so its magnitude is 1."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "attn_factor": 0.8782488562869419}
    fields = {"rope_theta": 1e6, "max_position_embeddings": 131072}
    spec = read_rope({**fields, "rope_scaling": scaling}, 131072, 64)
    assert spec.attention_factor == pytest.approx(1.0, abs=1e-6)
    without = {key: value for key, value in scaling.items() if key != "attn_factor"}
    for ours, expected in zip(rope_table(spec, 64, 300), theirs({**fields, "rope_scaling": without}, 300)):
        torch.testing.assert_close(ours, expected * 0.8782488562869419, rtol=1e-5, atol=1e-4)


def matrix() -> Iterator[dict]:
    """Fields of every kind that stretches, each with each."""
    for theta, factor in itertools.product((1e4, 5e5), (1.0, 1.5, 16.0)):
        yield {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": factor}}
    bounds = ((1.0, 4.0), (0.5, 8.0))
    for theta, factor, (low, high), original in itertools.product((1e4, 5e5), (2.0, 32.0), bounds, (256, 8192)):
        scaling = {
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
        yield {"rope_theta": theta, "rope_scaling": {"rope_type": "llama3", **scaling}}
    more: tuple[dict[str, Any], ...] = (
        {},
        {"attention_factor": 0.7},
        {"mscale": 0.707, "mscale_all_dim": 1.0},
        {"mscale": 0.5},
        {"beta_fast": 8, "beta_slow": 2},
        {"truncate": False},
    )
    for theta, factor, original, others in itertools.product((1e3, 1e6), (1.0, 4.0, 40.0), (128, 4096), more):
        scaling = {"factor": factor, "original_max_position_embeddings": original, **others}
        yield {"rope_theta": theta, "rope_scaling": {"rope_type": "yarn", **scaling}}


@pytest.mark.parametrize("head_dim", [64, 128])
def test_generated_fields(head_dim):
    for fields in matrix():
        check({"num_attention_heads": 256 // head_dim, "head_dim": head_dim, **fields}, 257, head_dim)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rope_scaling": {"type": "longrope", "long_factor": FACTORS}}, "short_factor is missing"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS[:3]}},
            "is a list of 3; allowed",
        ),
        ({"rope_scaling": {"type": "longrope", "short_factor": FACTORS, "long_factor": [*FACTORS[:31], -1]}}, "is -1; allowed"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "llama_4_scaling_beta": 0.1}}, "a yarn rope has no such field"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "rope_type is 'mrope'"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(fields, said):
    with pytest.raises(ModelError) as refused:
        read_rope({**SHAPE, **fields}, 4096, 64)
    assert said in str(refused.value)
