"""Every kind of adapter that is served, as peft saves it, against peft: alone and all kinds in one batch."""

import json
import re
import warnings

import pytest
import torch
from model_harness import Harness
from safetensors.torch import load_file, save_file

from evenflow.base.errors import AdapterRejected
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model
from tolerances import BF16_LOGITS, FP32_LOGITS

NUM_TOKENS = 4
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "both-tables": {
        "target_modules": ["embed_tokens", "lm_head"],
        "rank_pattern": {"lm_head": 7},
        "alpha_pattern": {"lm_head": 9},
    },
    "dora": {"target_modules": ALL, "use_dora": True},
    "dora-head": {"target_modules": ["lm_head", "down_proj"], "use_dora": True, "use_rslora": True},
    "lora-bias": {"target_modules": ALL, "lora_bias": True},
    "head-bias": {"target_modules": ["lm_head", "o_proj"], "lora_bias": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "norms": {"target_modules": ["up_proj"], "modules_to_save": ["norm", "input_layernorm"]},
    "saved-embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [9, 3, 250]},
    "tokens-of-each": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [40, 3], "lm_head": [7, 100]},
    },
}  # fmt: skip
TIED_ONLY = {
    "tying": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tying-lora": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
}


@pytest.fixture(scope="module")
def transformers():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def save_kind(transformers, base, folder, seed, **fields):
    """Train nothing, but make every trainable tensor differ clearly from where it began; save as peft does."""
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = peft.get_peft_model(
            model, peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **fields)
        )
        for name, parameter in trained.named_parameters():
            if "lora_embedding" in name:
                parameter.data *= 0.3  # logits in the hundreds would make rounding look like a fault
            elif parameter.requires_grad and "lora_A" not in name and "lora_B.default.weight" not in name:
                parameter.data += 0.3 * parameter.data.std().nan_to_num(0.2).clamp(min=0.2) * torch.randn_like(parameter)
        trained.save_pretrained(folder)


def expected_logits(transformers, base, folder, prompt, output):
    """fp32 logits of every output position by peft, as anybody loads the adapter; and how far the base model's are away."""
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([prompt + output])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        plain = model(ids).logits[0, len(prompt) - 1 : -1]
        served = peft.PeftModel.from_pretrained(model, folder)
        logits = served(ids).logits.float()[0, len(prompt) - 1 : -1]
    return logits, float((logits - plain).abs().max())


def serve(base, config, folders, dtype=torch.float32):
    harness = Harness(base, config, dtype, num_pages=1024)
    catalog = Catalog(harness.layout, base=BaseWeights(base))
    for slot, folder in enumerate(folders):
        digest = catalog.register(folder.name, folder)
        harness.load(slot, *catalog.host_image(digest))
    return harness


@pytest.mark.parametrize("name", [pytest.param("llama-biases", marks=pytest.mark.slow), "qwen2-tied"])
def test_every_kind_and_all_in_one_batch_equal_peft(tmp_path, transformers, name):
    tied = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True}
    fields = tied if name == "qwen2-tied" else {"attention_bias": True, "mlp_bias": True}
    base = tmp_path / "base"
    config = make_model(base, **fields)
    kinds = KINDS | TIED_ONLY if name == "qwen2-tied" else KINDS
    folders = [tmp_path / kind for kind in kinds]
    for seed, (folder, kind) in enumerate(zip(folders, kinds.values())):
        save_kind(transformers, base, folder, seed, **kind)
    harness = serve(base, config, folders)
    prompts = [[5, 9, 3, 40 + i] for i in range(len(folders))]
    outputs, mixed = harness.generate([*prompts, prompts[0]], NUM_TOKENS, [*range(len(folders)), -1], chunk=3)
    for slot, (folder, prompt) in enumerate(zip(folders, prompts)):
        expected, change = expected_logits(transformers, base, folder, prompt, outputs[slot])
        assert change > 100 * FP32_LOGITS, f"{folder.name} has no effect, which would hide a fault"
        assert (expected - mixed[slot]).abs().max() < FP32_LOGITS, folder.name
        alone_outputs, alone = harness.generate([prompt], NUM_TOKENS, [slot])
        assert alone_outputs[0] == outputs[slot]
        assert (alone[0] - mixed[slot]).abs().max() < FP32_LOGITS, folder.name
    plain, _ = Harness(base, config).generate([prompts[0]], NUM_TOKENS)
    assert plain[0] == outputs[-1], "a row without an adapter was changed by its neighbours"


def resave(folder, change, change_config=lambda config: None):
    """Write an adapter's tensors again under names that ``change`` gives, and its config as ``change_config`` leaves it."""
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    change_config(config)
    (folder / "adapter_config.json").write_text(json.dumps(config))


def as_fused(tensors):
    """q, k and v as one linear: only sound where the three have the same A."""
    found = {}
    for name, tensor in tensors.items():
        fused = re.sub(r"(q|k|v)_proj", "qkv_proj", re.sub(r"(gate|up)_proj", "gate_up_proj", name))
        found.setdefault(fused, {})[name] = tensor
    order = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    result = {}
    for fused, pieces in found.items():
        names = sorted(pieces, key=lambda name: next((i for i, module in enumerate(order) if f".{module}." in name), 0))
        result[fused] = pieces[names[0]] if "lora_A" in fused else torch.cat([pieces[name] for name in names])
    return result


@pytest.mark.parametrize("use_dora", [False, True])
def test_fused_targets_are_split_exactly(tmp_path, use_dora):
    base = tmp_path / "base"
    config = make_model(base)
    plain, fused = (make_adapter(tmp_path / kind, config, lora_rank=3, alpha=5) for kind in ("plain", "fused"))

    def share_a(tensors):
        for name in list(tensors):
            if "lora_A" in name and (match := re.search(r"\.(k|v|up)_proj\.", name)):
                first = "gate" if match[1] == "up" else "q"
                tensors[name] = tensors[name.replace(match[0], f".{first}_proj.")].clone()
        if use_dora:
            for name in [name for name in tensors if "lora_B" in name]:
                tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = 0.5 + torch.rand(len(tensors[name]))
        return tensors

    def dora(config):
        config["use_dora"] = use_dora

    def fuse(config):
        dora(config)
        config["target_modules"] = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]

    torch.manual_seed(0)
    resave(plain, share_a, dora)
    torch.manual_seed(0)
    resave(fused, lambda tensors: as_fused(share_a(tensors)), fuse)
    harness = serve(base, config, [plain, fused])
    outputs, logits = harness.generate([[5, 9, 3]] * 2, NUM_TOKENS, [0, 1])
    assert outputs[0] == outputs[1]
    assert torch.equal(logits[0], logits[1])


SPELLINGS = {
    "bare": lambda name: name.removeprefix("base_model.model."),
    "inside": lambda name: name.replace("base_model.model.model.", "base_model.model.model.language_model."),
    "outside": lambda name: name.replace("base_model.model.model.", "base_model.model.language_model.model."),
    "named": lambda name: name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_are_understood_however_they_are_spelled(tmp_path, spelling):
    base = tmp_path / "base"
    config = make_model(base)
    folders = [make_adapter(tmp_path / kind, config, lora_rank=3) for kind in ("plain", "other")]

    def use_pattern(config):
        if spelling in ("inside", "outside"):  # the trainer's pattern matches the trainer's paths
            config["target_modules"] = r".*language_model.*\.(self_attn|mlp)\.\w+_proj"

    resave(folders[1], lambda tensors: {SPELLINGS[spelling](name): t for name, t in tensors.items()}, use_pattern)
    catalog = Catalog(ArenaLayout(config.shape, 4))
    digests = [catalog.register(folder.name, folder) for folder in folders]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("file", ["adapter_model.bin", "pytorch_model.bin"])
def test_files_of_torch_are_read_like_safetensors(tmp_path, file):
    config = make_model(tmp_path / "base")
    folders = [make_adapter(tmp_path / kind, config, lora_rank=3, dtype=torch.bfloat16) for kind in ("plain", "other")]
    weights = folders[1] / "adapter_model.safetensors"
    torch.save(load_file(weights), folders[1] / file)
    weights.unlink()
    catalog = Catalog(ArenaLayout(config.shape, 4))
    digests = [catalog.register(folder.name, folder) for folder in folders]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("more", [8, -20])
def test_a_resized_vocabulary_is_served_beside_the_base_models(tmp_path, transformers, is_tied, more):
    import peft

    base = tmp_path / "base"
    config = make_model(base, tie_word_embeddings=is_tied)
    size = config.shape.vocab_size + more
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(size, mean_resizing=False)
        trained = peft.get_peft_model(
            model, peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM")
        )
        trained.save_pretrained(tmp_path / "resized", save_embedding_layers=True)
    harness = serve(base, config, [tmp_path / "resized"])
    prompt = [5, size - 1, 3, 7]
    outputs, logits = harness.generate([prompt, [5, 9, 3]], NUM_TOKENS, [0, -1])
    with torch.no_grad():
        expected = trained(torch.tensor([prompt + outputs[0]])).logits[0, len(prompt) - 1 : -1]
    assert (expected - logits[0][:, :size]).abs().max() < FP32_LOGITS
    assert bool((logits[0][:, size:] == float("-inf")).all())
    assert bool((logits[1][:, config.shape.vocab_size :] == float("-inf")).all())


@pytest.mark.slow
def test_bf16_stays_close_to_peft(tmp_path, transformers):
    base = tmp_path / "base"
    config = make_model(base, dtype=torch.bfloat16)
    kinds = ("head", "dora", "saved", "norms", "lora-bias")
    for seed, kind in enumerate(kinds):
        save_kind(transformers, base, tmp_path / kind, seed, **KINDS[kind])
    harness = serve(base, config, [tmp_path / kind for kind in kinds], torch.bfloat16)
    outputs, logits = harness.generate([[5, 9, 3, 40]] * len(kinds), NUM_TOKENS, list(range(len(kinds))))
    for kind, output, rows in zip(kinds, outputs, logits):
        expected, _ = expected_logits(transformers, base, tmp_path / kind, [5, 9, 3, 40], output)
        assert (expected - rows).abs().max() < BF16_LOGITS * max(1, float(expected.abs().max()) / 5), kind


def test_several_adapters_together_equal_pefts_concatenation(tmp_path, transformers):
    import peft

    base = tmp_path / "base"
    config = make_model(base)
    fields = {"a": {"lora_rank": 3}, "b": {"lora_rank": 8, "target_modules": ["q_proj", "down_proj"], "alpha": 5}}
    folders = [make_adapter(tmp_path / name, config, seed=i, **kind) for i, (name, kind) in enumerate(fields.items())]
    parts = [("a", 0.7), ("b", -0.5)]
    harness = Harness(base, config)
    catalog = Catalog(harness.layout)
    for folder in folders:
        catalog.register(folder.name, folder)
    digest = catalog.register("both", catalog.combiner(parts)())
    harness.load(0, *catalog.host_image(digest))
    outputs, logits = harness.generate([[5, 9, 3, 40]], NUM_TOKENS, [0])
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        served = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="a")
        served.load_adapter(folders[1], "b")
        served.add_weighted_adapter(["a", "b"], [weight for _, weight in parts], "both", combination_type="cat")
        served.set_adapter("both")
        expected = served(torch.tensor([[5, 9, 3, 40, *outputs[0]]])).logits[0, 3:-1]
    assert (expected - logits[0]).abs().max() < FP32_LOGITS
    assert catalog.combiner(parts)().record.digest == digest
    assert catalog.combiner([("a", 0.7), ("b", 0.5)])().record.digest != digest


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([("a", 1.0), ("a", float("nan"))], "the weight of a is nan"),
        ([("a", 1000.0)], "allowed: a number from -100 to 100"),
        ([("a", 1.0)] * 9, "it names 9 adapters"),
        ([("a", 1.0)] * 3, "together they have rank 9, above the configured maximum of 8"),
    ],
)
def test_combinations_that_cannot_be_served_are_refused(tmp_path, parts, reason):
    config = make_model(tmp_path / "base")
    catalog = Catalog(ArenaLayout(config.shape, 4), max_lora_rank=8)
    catalog.register("a", make_adapter(tmp_path / "a", config, lora_rank=3))
    with pytest.raises(AdapterRejected, match=reason):
        catalog.combiner(parts)()
