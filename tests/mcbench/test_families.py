"""Families of real models, made small: parity of virtual and real ranks, packed products and norms of heads among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from evenflow.base.errors import ModelError
from evenflow.comm import TorchCollective
from evenflow.mcbench.runs.build import init_group
from evenflow.mcbench.split.attach import compress_model, emulate_model
from evenflow.mcbench.split.parity import check_parity
from evenflow.mcbench.split.roles import roles_of

_DECODER: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
_ENCODER = {**_DECODER, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_ENCODER.pop("num_key_value_heads")
MODELS = ("qwen3", "gemma3", "phi3", "gpt2", "roberta", "xlm-roberta", "mistral")


def make(name: str) -> nn.Module:
    """Return a small random model of a family, in fp32."""
    torch.manual_seed(0)
    t: Any = transformers
    if name == "gpt2":
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = t.GPT2LMHeadModel(t.GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=96, **no_dropout))
    elif name == "roberta":
        model = t.RobertaForSequenceClassification(t.RobertaConfig(**_ENCODER))
    elif name == "xlm-roberta":
        model = t.XLMRobertaForSequenceClassification(t.XLMRobertaConfig(**_ENCODER))
    else:
        config, kind = {
            "qwen3": (t.Qwen3Config(**_DECODER, head_dim=8), t.Qwen3ForCausalLM),
            "gemma3": (t.Gemma3TextConfig(**_DECODER, head_dim=8), t.Gemma3ForCausalLM),
            "phi3": (t.Phi3Config(**_DECODER), t.Phi3ForCausalLM),
            "mistral": (t.MistralConfig(**_DECODER), t.MistralForCausalLM),
        }[name]
        model = kind(config)
    # Norms that start as ones would hide a gradient that is a part of the sum.
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


INPUTS = {"input_ids": torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("name", MODELS)
def test_virtual_ranks_equal_the_single_process(name: str) -> None:
    parity = check_parity(make(name), lambda m: emulate_model(m, 2, "none"), INPUTS)
    assert max(parity.output_error, parity.gradient_error) < 1e-5


def test_roles_of_packed_products_and_of_norms_of_heads() -> None:
    phi = roles_of(make("phi3"))
    assert phi.segments_of("model.layers.0.self_attn.qkv_proj.weight") == (32, 16, 16)
    assert phi.segments_of("model.layers.1.mlp.gate_up_proj") == (48, 48)
    assert phi.segments_of("model.layers.1.mlp.down_proj") == ()
    assert len(phi.rows) == len(phi.lone_columns) == 4
    assert len(roles_of(make("qwen3")).partial) == 4


def test_a_family_without_a_plan_is_named() -> None:
    t: Any = transformers
    falcon = t.FalconForCausalLM(t.FalconConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ModelError, match=r"falcon cannot be split: it has no tensor-parallel plan; known: bert, gpt2"):
        emulate_model(falcon, 2, "none")


def real_families(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    init_group(rank, 2, Path(folder, "rendezvous"))
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("pp", "tp"))
    group = TorchCollective(mesh["tp"].get_group())
    report = {}
    for name in MODELS:
        parity = check_parity(make(name), lambda m: compress_model(m, mesh, "none"), INPUTS, group)
        report[name] = max(parity.output_error, parity.gradient_error)
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "report.json").write_text(json.dumps(report))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_real_ranks_equal_the_single_process(tmp_path: Path) -> None:
    mp.spawn(real_families, (str(tmp_path),), nprocs=2)
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == set(MODELS)
    assert max(report.values()) < 1e-5, report
