"""Our decoder against transformers and peft: logits and greedy tokens, family by family, mixed adapters.

The one file of the models' tests that imports transformers (seconds of import).
"""

import warnings

import pytest
import torch
from model_harness import Harness

from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model
from tolerances import BF16_LOGITS, FP32_LOGITS

NUM_TOKENS = 6
PROMPTS = [[1, 2, 3, 4, 5], list(range(20, 57)), [7], [100, 3, 3, 250, 17]]

FAMILIES = {
    "llama-gqa": {},
    "llama-mha": {"num_key_value_heads": 4},
    "llama-mqa": {"num_key_value_heads": 1},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "llama-head-dim": {"head_dim": 32},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "mistral-window": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64},
    "qwen2-tied": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32},
    "qwen3-tied-bias": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
}
ROPES = {
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "llama3": {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    "yarn-set": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 0.7,
            "mscale_all_dim": 0.3,
            "truncate": False,
        }
    },
    "parameters-5": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
}
ADAPTERS = {
    "r1-qv": {"lora_rank": 1, "target_modules": ["q_proj", "v_proj"]},
    "r3-all": {"lora_rank": 3, "alpha": 7},
    "r8-rslora": {"lora_rank": 8, "alpha": 4, "use_rslora": True, "target_modules": ["o_proj", "up_proj"]},
    "r64-mlp": {"lora_rank": 64, "alpha": 32, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "patterns": {
        "lora_rank": 4,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 7},
        "alpha_pattern": {"v_proj": 9, r"model\.layers\.1\.mlp\.up_proj": 3},
    },
    "one-layer": {"lora_rank": 2, "layers": [1], "target_modules": ["k_proj", "gate_proj"]},
    "bf16-file": {"lora_rank": 5, "dtype": torch.bfloat16},
    "fp16-file": {"lora_rank": 5, "dtype": torch.float16, "fan_in_fan_out": True},
}


@pytest.fixture(scope="module")
def transformers():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def reference(model, prompt, output):
    """fp32 logits of every output position, [num_tokens, V]."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output])).logits.float()
    return logits[0, len(prompt) - 1 : -1]


def check(reference_logits, output, logits, tolerance):
    assert torch.isfinite(reference_logits).all()
    assert reference_logits.std() > 0.5, "logits so flat would hide a fault"
    assert (reference_logits - logits).abs().max() < tolerance
    return reference_logits.argmax(-1).tolist() == output


@pytest.mark.parametrize("name", FAMILIES | ROPES)
def test_fp32_equals_transformers(tmp_path, transformers, name):
    num_shards = 3 if name in ("mistral", "qwen2-tied") else 1
    config = make_model(tmp_path, num_shards=num_shards, **(FAMILIES | ROPES)[name])
    outputs, logits = Harness(tmp_path, config).generate(PROMPTS, NUM_TOKENS)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for prompt, output, rows in zip(PROMPTS, outputs, logits):
        assert check(reference(model, prompt, output), output, rows, FP32_LOGITS)


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-tied", "qwen3"])
def test_bf16_stays_close_to_transformers(tmp_path, transformers, name):
    config = make_model(tmp_path, dtype=torch.bfloat16, **FAMILIES[name])
    outputs, logits = Harness(tmp_path, config, torch.bfloat16).generate(PROMPTS, NUM_TOKENS)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for prompt, output, rows in zip(PROMPTS, outputs, logits):
        check(reference(model, prompt, output), output, rows, BF16_LOGITS)


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_give_the_same_tokens(tmp_path, chunk):
    config = make_model(tmp_path)
    harness = Harness(tmp_path, config)
    whole, logits = harness.generate(PROMPTS, NUM_TOKENS)
    cut, cut_logits = harness.generate(PROMPTS, NUM_TOKENS, chunk=chunk)
    assert whole == cut
    for a, b in zip(logits, cut_logits):
        assert (a - b).abs().max() < FP32_LOGITS


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-tied-bias"])
def test_mixed_adapters_equal_peft(tmp_path, transformers, name):
    import peft

    config = make_model(tmp_path / "base", **FAMILIES[name])
    harness = Harness(tmp_path / "base", config)
    catalog = Catalog(harness.layout)
    for slot, (adapter, fields) in enumerate(ADAPTERS.items()):
        make_adapter(tmp_path / adapter, config, seed=slot, **fields)
        digest = catalog.register(adapter, tmp_path / adapter)
        harness.load(slot, *catalog.host_image(digest))
    names = [None, *ADAPTERS, None]
    prompts = [[5, 9, 2 + i, 40] for i in range(len(names))]
    slots = [-1 if n is None else list(ADAPTERS).index(n) for n in names]
    outputs, logits = harness.generate(prompts, NUM_TOKENS, slots)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        served = peft.PeftModel.from_pretrained(model, tmp_path / next(iter(ADAPTERS)), adapter_name=next(iter(ADAPTERS)))
        for adapter in list(ADAPTERS)[1:]:
            served.load_adapter(tmp_path / adapter, adapter)
    base_logits = None
    for name_, prompt, output, rows in zip(names, prompts, outputs, logits):
        if name_ is None:
            with served.disable_adapter():
                base_logits = reference(served, prompt, output)
            assert check(base_logits, output, rows, FP32_LOGITS)
        else:
            served.set_adapter(name_)
            expected = reference(served, prompt, output)
            assert check(expected, output, rows, FP32_LOGITS)
            with served.disable_adapter():
                changed = (reference(served, prompt, output) - expected).abs().max()
            assert changed > 100 * FP32_LOGITS, "an adapter without effect would hide a fault"


@pytest.mark.parametrize("fields", [
    {"target_modules": "all-linear"},
    {"target_modules": r".*\.(q_proj|down_proj)", "exclude_modules": ["layers.0.mlp.down_proj"]},
    {"target_modules": ["self_attn.q_proj", "model.layers.1.mlp.up_proj"], "exclude_modules": r".*layers\.0\..*"},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0], "use_rslora": True, "rank_pattern": {"up_proj": 5}},
])  # fmt: skip
def test_adapters_saved_by_peft_are_served(tmp_path, transformers, fields):
    import peft

    config = make_model(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    torch.manual_seed(3)
    trained = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **fields)
    )
    trained.save_pretrained(tmp_path / "adapter")
    harness = Harness(tmp_path / "base", config)
    catalog = Catalog(harness.layout)
    digest = catalog.register("a", tmp_path / "adapter")
    harness.load(0, *catalog.host_image(digest))
    outputs, logits = harness.generate(PROMPTS, NUM_TOKENS, [0] * len(PROMPTS))
    for prompt, output, rows in zip(PROMPTS, outputs, logits):
        assert check(reference(trained, prompt, output), output, rows, FP32_LOGITS)
