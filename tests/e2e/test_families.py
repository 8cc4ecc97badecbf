"""Every family through the whole engine on the CPU's kernels: mixed with adapters, in chunks, preempted, as on torch's."""

from __future__ import annotations

import pytest
from engine_harness import EngineHarness

from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model
from evenflow.serving.models.registry import FAMILIES

FIELDS = {
    "GraniteForCausalLM": {"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2},
    "Phi3ForCausalLM": {"partial_rotary_factor": 0.75, "sliding_window": None},
    "SmolLM3ForCausalLM": {"no_rope_layers": [0, 1]},
    "MistralForCausalLM": {"sliding_window": None},
    "Exaone4ForCausalLM": {"sliding_window": None},
}
"""Beside the tiny model's, what shows most of a family."""
BY_DEFAULT = ("GraniteForCausalLM", "Phi3ForCausalLM", "SmolLM3ForCausalLM")


@pytest.mark.parametrize("architecture", [a if a in BY_DEFAULT else pytest.param(a, marks=pytest.mark.slow) for a in FAMILIES])
def test_chunks_preemption_and_kernels_change_nothing(tmp_path, architecture):
    fields = {"head_dim": 16, **FIELDS.get(architecture, {})}
    model_type = FAMILIES[architecture].model_type
    config = make_model(tmp_path / "model", architectures=[architecture], model_type=model_type, **fields)
    adapters = {
        "all": make_adapter(tmp_path / "all", config, lora_rank=3),
        "some": make_adapter(tmp_path / "some", config, lora_rank=9, target_modules=["q_proj", "down_proj"], seed=1),
    }
    model = tmp_path / "model"
    requests = [([7 + i, *range(3, 20 + i)], name) for i, name in enumerate([None, "all", "some"] * 2)]
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
