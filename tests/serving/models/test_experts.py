"""Mixtures of experts: routing as transformers has it, one product per chosen expert, stored each by itself or in one array."""

import pytest
import torch
from model_harness import Harness
from safetensors.torch import load_file, save_file

from evenflow.base.errors import ModelError
from evenflow.serving.backends.devices.weight_products import prepare_matmul
from evenflow.serving.models import experts as experts_file
from evenflow.serving.models.experts import Experts, ExpertsWeights, route
from evenflow.serving.models.model_config import load_config, parse_config
from evenflow.serving.models.random.random_model import TINY, make_model
from evenflow.serving.models.weights import expected_tensors
from evenflow.serving.parallel.group import OneRank
from tolerances import FP32_LOGITS

MIXTRAL = {**TINY, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}
QWEN2 = {
    **TINY,
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 80,
}
PROMPTS = [[1, 2, 3, 4, 5], list(range(20, 57)), [7]]


@pytest.mark.parametrize("is_renormalised", [True, False])
def test_routing(is_renormalised):
    logits = torch.randn(33, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights, chosen = route(logits.float(), 3, is_renormalised)
    for row, some, weight in zip(logits, chosen.tolist(), weights.double()):
        best = sorted(range(8), key=lambda e: -row[e])[:3]
        assert some == best
        expected = row.exp()[best] / row.exp().sum()
        torch.testing.assert_close(weight, expected / expected.sum() if is_renormalised else expected, rtol=1e-6, atol=0)
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 2, 19])
def test_rows_get_what_their_experts_say(dtype, num_rows):
    config = parse_config(QWEN2)
    generator = torch.Generator().manual_seed(num_rows)

    def noise(*shape):
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    router, matrices = noise(6, 64), [(noise(96, 64), noise(64, 48)) for _ in range(6)]
    shared, shared_gate = (noise(160, 64), noise(64, 80)), noise(1, 64)
    x_TH = noise(num_rows, 64) * 8
    weights = ExpertsWeights(router, list(matrices), shared, shared_gate)
    found = Experts(weights, config, 0, OneRank())(x_TH, None)

    def expert(of, x):
        gate, up = (x @ of[0].float().T).chunk(2, -1)
        return (torch.nn.functional.silu(gate) * up) @ of[1].float().T

    wide = x_TH.float()
    weight, chosen = route(prepare_matmul(router)(x_TH), 2, False)
    expected = torch.stack(
        [sum(w * expert(matrices[e], x) for w, e in zip(ws, es)) for x, ws, es in zip(wide, weight, chosen.tolist())]
    )
    expected += (wide @ shared_gate.float().T).sigmoid() * expert(shared, wide)
    assert expected.std() > 0.3
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.03)


def test_only_the_matrices_of_chosen_experts_are_multiplied(monkeypatch):
    multiplied = []

    def counting(weight, bias=None):
        matmul = prepare_matmul(weight, bias)

        def product(x):
            multiplied.append((tuple(weight.shape), len(x)))
            return matmul(x)

        return product

    monkeypatch.setattr(experts_file, "prepare_matmul", counting)
    config = parse_config(MIXTRAL)
    torch.manual_seed(0)
    weights = ExpertsWeights(torch.randn(4, 64), [(torch.randn(224, 64), torch.randn(64, 112)) for _ in range(4)])
    block = Experts(weights, config, 0, OneRank())
    block(torch.randn(1, 64), None)
    assert multiplied == [((4, 64), 1), ((224, 64), 1), ((224, 64), 1), ((64, 112), 1), ((64, 112), 1)]
    multiplied.clear()
    block(torch.randn(50, 64), None)
    assert len(multiplied) == 9
    assert sum(rows for shape, rows in multiplied if shape == (224, 64)) == 100


@pytest.mark.parametrize("base", [MIXTRAL, QWEN2], ids=["mixtral", "qwen2_moe"])
def test_experts_in_one_array_are_the_same(tmp_path, base):
    config = make_model(tmp_path / "each", base)
    tensors = load_file(tmp_path / "each" / "model.safetensors")
    names, mixture = config.mixture.names, config.mixture
    for layer in range(2):
        block = f"model.layers.{layer}.{names.block}."
        one = [f"{block}experts.{e}." for e in range(mixture.num_experts)]
        halves = [torch.stack([tensors.pop(f"{of}{name}.weight") for of in one]) for name in (names.gate, names.up)]
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat(halves, dim=1)
        down = torch.stack([tensors.pop(f"{of}{names.down}.weight") for of in one])
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = down
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = tensors.pop(f"{block}gate.weight")
    make_model(tmp_path / "all", base, seed=1)
    save_file(tensors, tmp_path / "all" / "model.safetensors")
    outputs, logits = Harness(tmp_path / "each", config).generate(PROMPTS, 4)
    again, other = Harness(tmp_path / "all", config).generate(PROMPTS, 4)
    assert again == outputs
    for a, b in zip(logits, other):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_transformers_that_saves_what_it_computes_with(tmp_path):
    import transformers

    transformers.utils.logging.disable_progress_bar()
    fields = {name: value for name, value in MIXTRAL.items() if name not in ("architectures", "model_type")}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**fields)).eval()
    model.save_pretrained(tmp_path, save_original_format=False)
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in load_file(tmp_path / "model.safetensors"))
    (tokens,), (logits,) = Harness(tmp_path, load_config(tmp_path)).generate([PROMPTS[1]], 4)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPTS[1] + tokens])).logits[0, len(PROMPTS[1]) - 1 : -1]
    assert (expected - logits).abs().max() < FP32_LOGITS


def test_an_expert_that_is_missing_is_told(tmp_path):
    config = make_model(tmp_path, MIXTRAL)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors are missing: model.layers.1.block_sparse_moe.experts.3.w2.weight"):
        Harness(tmp_path, config)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_experts_per_tok": 9}, r"num_experts_per_tok is 9; allowed: 1 to num_experts \(6\)"),
        ({"num_experts": 0}, "num_experts is 0; allowed: an integer of 1 or more"),
        ({"num_local_experts": 5}, "num_experts is 6 and num_local_experts is 5; allowed: equal, or one of them"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers is 'all'; allowed: a list of layer numbers"),
        ({"decoder_sparse_step": 7}, "leave no layer with experts"),
        ({"norm_topk_prob": 1}, "norm_topk_prob is 1; allowed: true or false"),
        ({"qkv_bias": False}, "qkv_bias is False; supported: true"),
        ({"use_sliding_window": True}, "use_sliding_window is True without layer_types"),
    ],
)
def test_bad_fields_are_told(changes, reason):
    with pytest.raises(ModelError, match=reason):
        parse_config({**QWEN2, **changes, "num_key_value_heads": 2})
    with pytest.raises(ModelError, match=f"num_key_value_heads is 3.*{reason}|{reason}.*num_key_value_heads is 0"):
        parse_config({**QWEN2, **changes, "num_key_value_heads": 0})


def test_experts_in_few_bits(tmp_path):
    config = make_model(tmp_path, {**QWEN2, "hidden_size": 64, "moe_intermediate_size": 64})
    exact = Harness(tmp_path, config).generate(PROMPTS, 1)[1]
    rough = Harness(tmp_path, config, quantization="int8").generate(PROMPTS, 1)[1]
    for a, b in zip(exact, rough):
        assert 0 < (a - b).abs().max() < 0.3


PUBLISHED = {
    "Mixtral-8x7B-Instruct-v0.1": {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "vocab_size": 32000,
    },
    "Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False, "eos_token_id": 151645,
        "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768,
        "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1e6,
        "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "Qwen1.5-MoE-A2.7B": {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "eos_token_id": 151643,
        "decoder_sparse_step": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632,
        "max_position_embeddings": 8192, "max_window_layers": 21, "moe_intermediate_size": 1408, "norm_topk_prob": False,
        "num_attention_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24,
        "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "shared_expert_intermediate_size": 5632,
        "sliding_window": 32768, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "OLMoE-1B-7B-0924": {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "attention_bias": False, "clip_qkv": None,
        "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 1024,
        "max_position_embeddings": 4096, "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16, "rope_scaling": None,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 50304,
    },
}  # fmt: skip
"""The fields of config.json of models that people have."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name):
    config = parse_config(PUBLISHED[name])
    assert config.mixture is not None
    assert all(config.mixture.is_sparse)
    assert {kind.window for kind in config.layers} == {None}
    mixture = config.mixture
    sizes = sum(torch.Size(shape).numel() for shape in expected_tensors(config).values())
    found = mixture.num_experts, mixture.num_chosen, mixture.width, mixture.is_renormalised, round(sizes / 1e9, 1)
    assert (
        found
        == {
            "Mixtral-8x7B-Instruct-v0.1": (8, 2, 14336, True, 46.7),
            "Qwen3-30B-A3B": (128, 8, 768, True, 30.5),
            "Qwen1.5-MoE-A2.7B": (60, 4, 1408, False, 14.3),
            "OLMoE-1B-7B-0924": (64, 8, 1024, False, 6.9),
        }[name]
    )


def test_a_window_of_a_mixtral_is_every_layers_and_a_missing_one_is_none():
    assert [kind.window for kind in parse_config(MIXTRAL).layers] == [None, None]
    assert [kind.window for kind in parse_config({**MIXTRAL, "sliding_window": 64}).layers] == [64, 64]
