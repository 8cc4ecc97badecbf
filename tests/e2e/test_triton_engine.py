"""The real engine on Triton's kernels (in its interpreter) says what it says on torch's."""

from __future__ import annotations

import pytest

from triton_interpreter import mend

pytest.importorskip("triton")
pytest.importorskip("msgspec")

from engine_harness import EngineHarness

from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model

mend()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_greedy_tokens_of_mixed_adapters(tmp_path, device):
    config = make_model(tmp_path / "model", num_hidden_layers=1)
    adapters = {
        f"a{i}": make_adapter(tmp_path / f"a{i}", config, lora_rank=rank, seed=i, target_modules=modules)
        for i, (rank, modules) in enumerate([(3, ["q_proj", "v_proj", "down_proj"]), (17, ["k_proj", "o_proj", "gate_proj"])])
    }
    requests = [([5, 9, 11], "a0"), (list(range(20, 60)), "a1"), ([7] * 18, None)]
    answers = {}
    for kernels in ("torch", "triton"):
        engine = EngineHarness(
            tmp_path / "model", adapters, kernels=kernels, device=device, max_num_seqs=3, max_batch_tokens=32, max_model_len=64
        )
        answers[kernels] = engine.generate(*requests, max_tokens=4)
        engine.assert_nothing_leaked()
    assert answers["triton"] == answers["torch"]
    assert len(set(map(tuple, answers["torch"]))) == 3
