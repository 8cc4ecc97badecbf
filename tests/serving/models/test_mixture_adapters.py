"""LoRA on mixtures of experts as PEFT writes it: routers, shared experts, all experts in one pair, each expert by itself."""

import json
import shutil
import warnings

import pytest
import torch
from model_harness import Harness
from safetensors.torch import load_file, save_file
from thread_ranks import on_ranks

from evenflow.base.errors import AdapterRejected
from evenflow.serving.adapters.page_image import page_image
from evenflow.serving.adapters.peft_format import write_config
from evenflow.serving.adapters.peft_reader import BaseModel, read_adapter
from evenflow.serving.backends.lora import expert_lora
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.random.random_model import TINY, make_model
from evenflow.serving.parallel.rank_group import RankGroup
from tolerances import FP32_LOGITS

MOE = {**TINY, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
MODELS = {
    "mixtral": {**TINY, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4},
    "qwen2_moe": {
        **MOE,
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 80,
    },
    "qwen3_moe": {**MOE, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "norm_topk_prob": True},
}
STACKED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS = {
    "stacked": {"target_modules": ["q_proj"], "target_parameters": STACKED, "rank_pattern": {".*gate_up_proj": 4}},
    "down": {"target_modules": ["v_proj"], "target_parameters": ["experts.down_proj"], "use_rslora": True},
    "router": {"target_modules": ["o_proj"], "target_parameters": ["gate.weight"], "r": 3},
    "all": {"target_modules": "all-linear"},
}
PROMPT = [5, 9, 2, 40, 41, 17, 3]
NUM_TOKENS = 4


def trained(base, folder, seed, **settings):
    """A random adapter as peft makes and saves it, and peft's model with it."""
    import peft
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"r": 2, "lora_alpha": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
        found = peft.get_peft_model(model, peft.LoraConfig(**settings))
        for name, value in found.named_parameters():
            if "lora_B" in name:
                value.data = torch.randn_like(value) / 2
        found.save_pretrained(folder)
    return found.eval()


def expected_of(model, output):
    with torch.no_grad():
        return model(torch.tensor([PROMPT + output])).logits[0, len(PROMPT) - 1 : -1]


def loaded(harness, folders, base):
    for slot, folder in enumerate(folders):
        adapter = read_adapter(folder, base)
        harness.load(slot, adapter.signature, page_image(adapter, harness.layout)[1])


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_adapters_on_mixtures_say_what_peft_says(tmp_path, model_type, monkeypatch):
    config = make_model(tmp_path / "base", MODELS[model_type])
    models = {name: trained(tmp_path / "base", tmp_path / name, i, **of) for i, (name, of) in enumerate(KINDS.items())}
    base = BaseModel(config.shape)
    harness = Harness(tmp_path / "base", config)
    folders = [tmp_path / name for name in models]
    loaded(harness, folders, base)
    slots = [0, 1, -1, 2, 3, 0]
    outputs, logits = harness.generate([PROMPT] * len(slots), NUM_TOKENS, slots, chunk=3)
    plain = logits[2]
    for slot, output, rows in zip(slots, outputs, logits):
        if slot >= 0:
            expected = expected_of(list(models.values())[slot], output)
            assert (expected - rows).abs().max() < FP32_LOGITS, list(models)[slot]
            assert expected.argmax(-1).tolist() == output
            assert (plain[0] - rows[0]).abs().max() > 100 * FP32_LOGITS, "it changes nothing"
    # Both ways of multiplying say the same.
    for pairs in (1, 1 << 30):
        monkeypatch.setattr(expert_lora, "_PAIRS_PER_GROUP", pairs)
        again, others = harness.generate([PROMPT] * len(slots), NUM_TOKENS, slots)
        assert again == outputs
        for rows, other in zip(logits, others):
            torch.testing.assert_close(rows, other, rtol=0, atol=FP32_LOGITS)

    def one_rank(rank, collective):
        group = RankGroup(collective)
        shard = Shard(config.shape, rank, 2, ())
        harness = Harness(tmp_path / "base", config, shard=shard, group=group)
        loaded(harness, folders, base)
        return harness.generate([PROMPT] * len(slots), NUM_TOKENS, slots)

    for tokens, of_rank in on_ranks(2, one_rank):
        assert tokens == outputs
        for rows, other in zip(logits, of_rank):
            torch.testing.assert_close(rows, other, rtol=0, atol=FP32_LOGITS)


def each_expert(folder, config, lora_rank=3, **changes):
    """An adapter as it was written when every expert of a Mixtral was a module of its own."""
    write_config(folder, lora_rank=lora_rank, alpha=6, target_modules=["q_proj", "gate", "w1", "w2", "w3"], **changes)
    generator = torch.Generator().manual_seed(0)
    shape, tensors = config.shape, {}
    for layer in range(2):
        widths = {"self_attn.q_proj": (64, 64), "block_sparse_moe.gate": (64, 4)}
        for expert in range(4):
            for name in ("w1", "w2", "w3"):
                i, o = (shape.experts.width, 64) if name == "w2" else (64, shape.experts.width)
                widths[f"block_sparse_moe.experts.{expert}.{name}"] = i, o
        for path, (i, o) in widths.items():
            of = f"base_model.model.model.layers.{layer}.{path}.lora_"
            tensors[f"{of}A.weight"] = torch.randn(lora_rank, i, generator=generator) / i**0.5
            tensors[f"{of}B.weight"] = torch.randn(o, lora_rank, generator=generator) / 2
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_each_expert_by_itself(tmp_path):
    import peft
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config = make_model(tmp_path / "base", MODELS["mixtral"])
    folder = each_expert(tmp_path / "a", config)
    harness = Harness(tmp_path / "base", config)
    loaded(harness, [folder], BaseModel(config.shape))
    (output,), (rows,) = harness.generate([PROMPT], NUM_TOKENS, [0])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = peft.PeftModel.from_pretrained(model, tmp_path / "a").eval()
    assert (expected_of(oracle, output) - rows).abs().max() < FP32_LOGITS
    assert read_adapter(folder, BaseModel(config.shape)).target_modules == ("q_proj", "router", "experts")
    assert read_adapter(folder, BaseModel(config.shape)).signature.max_lora_rank == 3


def rewritten(source, target, change, **fields):
    """A copy of an adapter with other tensors and fields."""
    shutil.copytree(source, target)
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(change(tensors), target / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    return target


def turned(tensors):
    """Factors as peft before 0.19 wrote them: A and B of 3-D parameters have changed places."""

    def flat(name, value):
        if ".experts." not in name:
            return name, value
        if "lora_A" in name:  # [E R, I] to [I, R E]
            return name.replace("lora_A", "lora_B"), value.view(4, -1, value.shape[1]).permute(2, 1, 0).flatten(1)
        return name.replace("lora_B", "lora_A"), value.view(len(value), -1, 4).permute(2, 1, 0).flatten(0, 1)

    return {name: value.contiguous() for name, value in (flat(*item) for item in tensors.items())}


def test_factors_of_an_older_peft(tmp_path):
    config = make_model(tmp_path / "base", MODELS["qwen3_moe"])
    trained(tmp_path / "base", tmp_path / "new", 0, **KINDS["stacked"])
    old = rewritten(tmp_path / "new", tmp_path / "old", turned, peft_version="0.18.1")
    images = [
        page_image(read_adapter(f, BaseModel(config.shape)), Harness(tmp_path / "base", config).layout)[1]
        for f in (tmp_path / "new", old)
    ]
    assert images[0].any()
    assert (images[0] == images[1]).all()


def test_where_input_and_output_are_equally_wide_the_version_decides(tmp_path):
    config = make_model(tmp_path / "base", {**MODELS["qwen3_moe"], "moe_intermediate_size": 32})
    trained(tmp_path / "base", tmp_path / "new", 0, **KINDS["stacked"])
    read_adapter(tmp_path / "new", BaseModel(config.shape))
    old = rewritten(tmp_path / "new", tmp_path / "old", turned, peft_version="0.18.0")
    layout = Harness(tmp_path / "base", config).layout
    a, b = (page_image(read_adapter(f, BaseModel(config.shape)), layout)[1] for f in (tmp_path / "new", old))
    assert (a == b).all()
    unknown = rewritten(tmp_path / "new", tmp_path / "unknown", dict, peft_version=None)
    with pytest.raises(AdapterRejected, match="peft_version must say which peft did"):
        read_adapter(unknown, BaseModel(config.shape))


def test_what_cannot_be_served_is_told_at_once(tmp_path):
    config = make_model(tmp_path / "base", MODELS["mixtral"])
    folder = each_expert(tmp_path / "a", config, target_parameters=["mlp.shared"])
    tensors = load_file(folder / "adapter_model.safetensors")
    path = "base_model.model.model.layers.1.block_sparse_moe"
    del tensors[f"{path}.experts.2.w1.lora_B.weight"]
    tensors[f"{path}.experts.1.w3.lora_magnitude_vector"] = torch.ones(112)
    tensors[f"{path}.experts.4.w1.lora_A.weight"] = torch.ones(3, 64)
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"] = torch.ones(3, 64)
    tensors[f"{path}.gate.lora_A.weight"] = torch.ones(2, 64)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterRejected) as caught:
        read_adapter(folder, BaseModel(config.shape))
    for reason in (
        f"{path}.experts.4.w1.lora_A.weight belongs to no part of the base model",
        "layers.0.mlp.up_proj.lora_A.weight belongs to no part of the base model",
        "layers.1.block_sparse_moe.experts.2.w1 has A; supported on experts and routers: lora_A and lora_B",
        "layers.1.block_sparse_moe.experts.1.w3 has A, B, magnitude; supported",
        f"{path}.gate.lora_A.weight has shape [2, 64], config and base model say [3, 64]",
        "target_parameters names mlp.shared, which has no tensors here that this model knows",
    ):
        assert reason in str(caught.value)


def test_an_expert_without_its_tensors_is_told(tmp_path):
    config = make_model(tmp_path / "base", MODELS["mixtral"])
    folder = each_expert(tmp_path / "a", config)
    tensors = load_file(folder / "adapter_model.safetensors")
    gone = {name: value for name, value in tensors.items() if "layers.1.block_sparse_moe.experts.2.w1" not in name}
    save_file(gone, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterRejected, match=r"layers.1.block_sparse_moe.experts.2.w1 is named like others .* but has none"):
        read_adapter(folder, BaseModel(config.shape))
