"""What every registered family keeps: its models, as transformers makes and saves them, say here what they say there.

A family without an entry in CASES fails. Models are small and random, norms and biases included.
"""

import gc
import warnings
from dataclasses import dataclass, field

import pytest
import torch
from model_harness import Harness
from safetensors.torch import load_file, save_file
from thread_ranks import on_ranks

from evenflow.base.errors import AdapterRejected
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.page_image import page_image
from evenflow.serving.adapters.peft_reader import BaseModel, read_adapter
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model
from evenflow.serving.models.registry import FAMILIES
from evenflow.serving.parallel.rank_group import RankGroup
from tolerances import FP32_LOGITS

NUM_TOKENS = 5
PROMPTS = [[1, 2, 3, 4, 5], list(range(20, 57)), [7], [100, 3, 3, 250, 17]]
TINY = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
}


@dataclass
class Case:
    """A family's models: fields beside TINY, in the words of its config class."""

    fields: list[dict] = field(default_factory=lambda: [{}])
    fused: bool = False
    """True: adapters name the fused linears."""
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    """Linears beside those of attention that adapters name."""


GRANITE = {"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 0.5}
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0 + i / 10 for i in range(6)],
        "long_factor": [2.0 + i for i in range(6)],
        "original_max_position_embeddings": 64,
    },
    "original_max_position_embeddings": 64,
}
CLOVAX = {**GRANITE, "attention_multiplier": None}
FULL = ["full_attention", "full_attention"]
SLIDES = {"use_sliding_window": True, "sliding_window": 9}
TWO_ROPES = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3000.0},
    }
}
GEMMA = {
    "head_dim": 32,
    "query_pre_attn_scalar": 20,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention"],
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
CASES = {
    "LlamaForCausalLM": Case([{}, {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "head_dim": 32}]),
    "MistralForCausalLM": Case([{"sliding_window": 9}, {"sliding_window": None}]),
    "Qwen2ForCausalLM": Case([{"tie_word_embeddings": True}, {**SLIDES, "max_window_layers": 1}]),
    "Qwen3ForCausalLM": Case([{"head_dim": 32}, {"head_dim": 16, **SLIDES, "max_window_layers": 0}]),
    "GraniteForCausalLM": Case([GRANITE, {**GRANITE, "tie_word_embeddings": True, "attention_bias": True}]),
    "Phi3ForCausalLM": Case([{"sliding_window": 9}, {**LONGROPE, "tie_word_embeddings": True}], fused=True),
    "SmolLM3ForCausalLM": Case([{"num_hidden_layers": 4}, {"no_rope_layers": [0, 1], "tie_word_embeddings": False, **SLIDES}]),
    "Olmo2ForCausalLM": Case([{}, {"attention_bias": True}]),
    "Olmo3ForCausalLM": Case([{"num_hidden_layers": 4, "sliding_window": 9}]),
    "Glm4ForCausalLM": Case([{"head_dim": 32}], fused=True),
    "HeliumForCausalLM": Case([{"head_dim": 16}]),
    "HyperCLOVAXForCausalLM": Case([GRANITE, CLOVAX]),
    "GemmaForCausalLM": Case([{"head_dim": 32}, {"head_dim": 16, "hidden_act": "gelu", "attention_bias": True}]),
    "Gemma2ForCausalLM": Case([GEMMA, {**GEMMA, "final_logit_softcapping": None, "attn_logit_softcapping": None}]),
    "Gemma3ForCausalLM": Case([{**GEMMA, **TWO_ROPES, "attn_logit_softcapping": None}]),
    "GlmForCausalLM": Case([{"head_dim": 32}], fused=True),
    "SeedOssForCausalLM": Case([{"head_dim": 16}, {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True}]),
    "Ernie4_5ForCausalLM": Case([{"head_dim": 32}, {"head_dim": 16, "use_bias": True, "tie_word_embeddings": False}]),
    "CohereForCausalLM": Case([{"logit_scale": 0.7}]),
    "Cohere2ForCausalLM": Case([{"logit_scale": 0.7, "sliding_window": 9, "sliding_window_pattern": 2}]),
    "Exaone4ForCausalLM": Case(
        [{"sliding_window": None, "layer_types": FULL}, {"sliding_window": 9, "sliding_window_pattern": 2}]
    ),
    "MinistralForCausalLM": Case(
        [{"head_dim": 16, "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]}]
    ),
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
CASES |= {
    "MixtralForCausalLM": Case([{"num_local_experts": 4}], mlp=()),
    "Qwen2MoeForCausalLM": Case(
        [
            {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 80},
            {**MOE, "num_experts": 5, "shared_expert_intermediate_size": 80, "norm_topk_prob": True, "mlp_only_layers": [0]},
        ]
    ),
    "Qwen3MoeForCausalLM": Case(
        [
            {**MOE, "num_experts": 4, "norm_topk_prob": True},
            {**MOE, "num_experts": 6, "num_experts_per_tok": 3, "decoder_sparse_step": 2, "head_dim": 32},
        ],
        mlp=(),
    ),
    "OlmoeForCausalLM": Case(
        [{"num_experts": 8, "num_experts_per_tok": 3}, {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}],
        mlp=(),
    ),
}
BY_DEFAULT = ("Phi3ForCausalLM", "Olmo2ForCausalLM", "CohereForCausalLM", "Qwen2MoeForCausalLM")
"""Families whose adapters are tried in the default suite: with fused linears, norms elsewhere or of
another kind, a shared expert."""
ALL = [(name, i) for name in FAMILIES for i in range(len(CASES[name].fields) if name in CASES else 1)]


@pytest.fixture(scope="module")
def transformers():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def make(transformers, architecture, index, folder):
    """A model of the family as transformers saves it, every tensor of it random."""
    family = FAMILIES[architecture]
    config = transformers.AutoConfig.for_model(family.model_type, **{**TINY, **CASES[architecture].fields[index]})
    config._attn_implementation = "eager"
    torch.manual_seed(index)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert type(model).__name__ == architecture
    randomise(model)
    model.save_pretrained(folder)
    return model.eval(), load_config(folder)


def randomise(model):
    """Unit-gain matrices, norms near what they begin with, small biases, clearly different logits."""
    for name, value in model.named_parameters():
        noise = torch.randn_like(value)
        if value.dim() == 1:
            value.data += 0.1 * noise
        elif "embed_tokens" in name:
            value.data = noise if model.get_output_embeddings().weight is not value else 3 * noise / value.shape[1] ** 0.5
        else:
            value.data = noise * (3 if name == "lm_head.weight" else 1) / value.shape[-1] ** 0.5
    cap = model.config.to_dict().get("logits_scaling")
    assert cap is None or cap > 0


def reference(model, prompt, output):
    """fp32 logits of every output position, [num_tokens, V]."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output])).logits.float()
    return logits[0, len(prompt) - 1 : -1]


def check(expected, output, logits):
    assert torch.isfinite(expected).all()
    assert expected.std() > 0.5, "logits so flat would hide a fault"
    assert (expected - logits).abs().max() < FP32_LOGITS
    assert expected.argmax(-1).tolist() == output


@pytest.mark.parametrize(("architecture", "index"), ALL)
def test_a_family_says_what_transformers_says(tmp_path, transformers, architecture, index):
    model, config = make(transformers, architecture, index, tmp_path)
    harness = Harness(tmp_path, config)
    outputs, logits = harness.generate(PROMPTS, NUM_TOKENS)
    for prompt, output, rows in zip(PROMPTS, outputs, logits):
        check(reference(model, prompt, output), output, rows)
    # Chunks of any size, and a sequence that begins anew after two tokens as if it had been preempted, change nothing.
    assert harness.generate(PROMPTS, NUM_TOKENS, chunk=7)[0] == outputs
    again = [prompt + output[:2] for prompt, output in zip(PROMPTS, outputs)]
    assert harness.generate(again, NUM_TOKENS - 2, chunk=3)[0] == [output[2:] for output in outputs]


def adapters_of(architecture, config):
    """Settings of peft for three adapters: every linear, DoRA on some, and own tables and norms."""
    fused = FAMILIES[architecture].fused if CASES[architecture].fused else {}
    pieces = {piece: whole for whole, of in fused.items() for piece in of}
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", *CASES[architecture].mlp)
    modules = list(dict.fromkeys(pieces.get(module, module) for module in linears))
    return {
        "all": {"r": 3, "target_modules": modules},
        "dora": {"r": 4, "target_modules": [modules[0], modules[-1]], "use_dora": True},
        "tables": {
            "r": 2,
            "target_modules": [modules[-1]],
            "modules_to_save": [*FAMILIES[architecture].norms, "model.norm", "embed_tokens", "lm_head"],
        },
    }


@pytest.mark.parametrize("architecture", [a if a in BY_DEFAULT else pytest.param(a, marks=pytest.mark.slow) for a in FAMILIES])
def test_adapters_on_a_family_say_what_peft_says(tmp_path, transformers, architecture):
    import peft

    _, config = make(transformers, architecture, 0, tmp_path / "base")
    harness = Harness(tmp_path / "base", config)
    base = BaseModel(config.shape, BaseWeights(tmp_path / "base", config.tie_word_embeddings))
    trained = {}
    for slot, (name, settings) in enumerate(adapters_of(architecture, config).items()):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        torch.manual_seed(slot)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = {"lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
            trained[name] = peft.get_peft_model(model, peft.LoraConfig(**settings))
            for key, value in trained[name].named_parameters():
                if value.requires_grad and "lora_A" not in key and "lora_B" not in key:
                    value.data += 0.2 * value.data.std().nan_to_num(0.2).clamp(min=0.2) * torch.randn_like(value)
            trained[name].save_pretrained(tmp_path / name)
        adapter = read_adapter(tmp_path / name, base)
        harness.load(slot, adapter.signature, page_image(adapter, harness.layout)[1])
    prompts = [[5, 9, 2 + i, 40, 41] for i in range(5)]
    slots = [0, -1, 1, 2, 0]
    outputs, logits = harness.generate(prompts, NUM_TOKENS, slots, chunk=4)
    for slot, prompt, output, rows in zip(slots, prompts, outputs, logits):
        if slot < 0:
            with trained["all"].disable_adapter():
                check(reference(trained["all"], prompt, output), output, rows)
            continue
        model = trained[list(trained)[slot]]
        expected = reference(model, prompt, output)
        check(expected, output, rows)
        with model.disable_adapter():
            assert (reference(model, prompt, output) - expected).abs().max() > 100 * FP32_LOGITS, "it changes nothing"
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "index"), ALL)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_of_a_family_say_what_one_says(tmp_path, transformers, architecture, index, world_size):
    _, config = make(transformers, architecture, index, tmp_path)
    expected_tokens, expected_logits = Harness(tmp_path, config).generate(PROMPTS, NUM_TOKENS)

    def one_rank(rank, collective):
        group = RankGroup(collective)
        shard = Shard(config.shape, rank, world_size, ())
        result = Harness(tmp_path, config, shard=shard, group=group).generate(PROMPTS, NUM_TOKENS, chunk=11)
        group.ledger.check_integrity()
        return result

    for tokens, logits in on_ranks(world_size, one_rank):
        assert tokens == expected_tokens
        for found, expected in zip(logits, expected_logits):
            torch.testing.assert_close(found, expected, rtol=0, atol=FP32_LOGITS)


def test_a_norm_that_the_base_model_lacks_is_refused(tmp_path):
    config = make_model(tmp_path / "base", architectures=["Olmo2ForCausalLM"], model_type="olmo2")
    folder = make_adapter(tmp_path / "a", config, target_modules=["q_proj"], modules_to_save=["input_layernorm"])
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.1.input_layernorm.weight"] = torch.ones(64)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterRejected, match="input_layernorm of layer 1 has a weight here, but the base model has no such"):
        read_adapter(folder, BaseModel(config.shape, BaseWeights(tmp_path / "base")))
