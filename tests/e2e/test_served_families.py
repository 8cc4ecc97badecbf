"""Every family through the whole engine on the CPU's kernels: mixed with adapters, in chunks, preempted, as on torch's."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from engine_harness import EngineHarness
from safetensors.torch import load_file, save_file

from evenflow.serving.adapters.peft_format import CONFIG_FILE, WEIGHTS_FILE
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model
from evenflow.serving.models.registry import FAMILIES

FIELDS: dict[str, dict[str, Any]] = {
    "GraniteForCausalLM": {"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2},
    "Phi3ForCausalLM": {"partial_rotary_factor": 0.75, "sliding_window": None},
    "SmolLM3ForCausalLM": {"no_rope_layers": [0, 1]},
    "MistralForCausalLM": {"sliding_window": None},
    "MixtralForCausalLM": {"sliding_window": None, "num_local_experts": 4},
    "Qwen2MoeForCausalLM": {
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 112,
        "mlp_only_layers": [0],
    },
    "Qwen3MoeForCausalLM": {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48},
    "OlmoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2},
    "Exaone4ForCausalLM": {"sliding_window": 20, "sliding_window_pattern": 2},
    "Gemma2ForCausalLM": {"sliding_window": 20, "attn_logit_softcapping": 2.0},
    "Gemma3ForCausalLM": {"sliding_window": 20, "sliding_window_pattern": 2, "rope_local_base_freq": 100.0},
    "Cohere2ForCausalLM": {"sliding_window": 20, "sliding_window_pattern": 2, "logit_scale": 1.0},
    "Olmo3ForCausalLM": {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]},
}
"""Beside the tiny model's, what shows most of a family."""
BY_DEFAULT = ("GraniteForCausalLM", "Phi3ForCausalLM", "SmolLM3ForCausalLM", "MixtralForCausalLM")


def add_experts(folder, config, lora_rank, parameters):
    """Give an adapter LoRA on experts and router, as PEFT writes it for parameters."""
    tensors = load_file(folder / WEIGHTS_FILE)
    generator = torch.Generator().manual_seed(3)
    hidden, num_experts, width = config.shape.hidden_size, config.mixture.num_experts, config.mixture.width
    for layer in (layer for layer in range(config.shape.num_layers) if config.mixture.is_sparse[layer]):
        for path, inputs, outputs, count in (
            ("experts.base_layer", hidden, 2 * width, num_experts),
            ("experts", width, hidden, num_experts),
            ("gate", hidden, num_experts, 1),
        ):
            of, rows = f"base_model.model.model.layers.{layer}.mlp.{path}.lora_", count * lora_rank
            tensors[f"{of}A.weight"] = torch.randn(rows, inputs, generator=generator) / inputs**0.5
            tensors[f"{of}B.weight"] = torch.randn(outputs, rows, generator=generator) / 2
    save_file(tensors, folder / WEIGHTS_FILE)
    told = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**told, "target_parameters": parameters}))


@pytest.mark.parametrize("architecture", [a if a in BY_DEFAULT else pytest.param(a, marks=pytest.mark.slow) for a in FAMILIES])
def test_chunks_preemption_and_kernels_change_nothing(tmp_path, architecture):
    fields: dict[str, Any] = {"head_dim": 16, **FIELDS.get(architecture, {})}
    model_type = FAMILIES[architecture].model_type
    config = make_model(tmp_path / "model", architectures=[architecture], model_type=model_type, **fields)
    adapters = {
        "all": make_adapter(tmp_path / "all", config, lora_rank=3),
        "some": make_adapter(tmp_path / "some", config, lora_rank=9, target_modules=["q_proj", "down_proj"], seed=1),
    }
    model = tmp_path / "model"
    if config.mixture is not None:
        modules = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "gate.weight"]
        adapters["experts"] = make_adapter(tmp_path / "experts", config, lora_rank=2, target_modules=["v_proj"], seed=2)
        add_experts(adapters["experts"], config, 2, modules)
    requests = [([7 + i, *range(3, 20 + i)], name) for i, name in enumerate([None, *adapters] * 2)]
    engine = EngineHarness(model, adapters, max_batch_tokens=24)
    found = engine.generate(*requests, max_tokens=30)
    assert len(set(map(tuple, found))) == len(requests)
    assert EngineHarness(model, adapters, kernels="torch", check_every=9).generate(*requests, max_tokens=30) == found
    page_bytes = engine.engine.ready().page_bytes
    small = EngineHarness(model, adapters, memory_bytes=18 * page_bytes, max_model_len=128)
    small.generate(*[([1, 2], None)] * 60, max_tokens=1)  # teaches the admission to expect short answers
    assert small.generate(*requests, max_tokens=30) == found
    assert small.scheduler.snapshot().num_preemptions > 0, "the arena was too large to show anything"
    small.assert_nothing_leaked()
