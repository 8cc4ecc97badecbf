"""config.json, strictly: both spellings, each family's flags, and a refusal that names field and value."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.base.errors import ModelError
from evenflow.serving.models.model_config import load_config, parse_config
from evenflow.serving.models.random.random_model import TINY
from evenflow.serving.models.registry import FAMILIES

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
GEMMA2 = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


def parse(generation=None, **changes):
    return parse_config({**TINY, **changes}, generation)


def test_published_and_transformers_5_spellings_mean_the_same():
    old = parse(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}, torch_dtype="bfloat16")
    raw = {**TINY, "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}, "dtype": "bfloat16"}
    del raw["rope_theta"]
    assert old == parse_config(raw)
    assert (old.rope.kind, old.rope.theta, old.rope.factor, old.dtype) == ("linear", 5e5, 2.0, "bfloat16")


def test_the_benchmark_shape_of_llama_3_8b():
    config = parse(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rope_scaling={
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        eos_token_id=128009,
        generation={"eos_token_id": [128001, 128008, 128009], "do_sample": True, "temperature": 0.6, "top_p": 0.9},
    )
    assert (config.shape.head_dim, config.shape.q_width, config.shape.kv_width) == (128, 4096, 1024)
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert dict(config.sampling_defaults) == {"temperature": 0.6, "top_p": 0.9}
    assert config.rope.original_max_position == 8192
    assert config.context_length() == 131072


def test_flags_of_the_families():
    llama, qwen2 = parse(attention_bias=True, mlp_bias=True), parse(**QWEN2)
    qwen3 = parse(architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    assert (llama.has_qkv_bias, llama.has_o_bias, llama.has_mlp_bias, llama.family.qk_norm) == (True, True, True, "none")
    assert (qwen2.has_qkv_bias, qwen2.has_o_bias, qwen2.has_mlp_bias, qwen2.family.qk_norm) == (True, False, False, "none")
    assert (qwen3.has_qkv_bias, qwen3.has_o_bias, qwen3.has_mlp_bias, qwen3.family.qk_norm) == (False, False, False, "heads")
    assert qwen3.shape.head_dim == 128


SLIDES = {"sliding_window": 64, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [None, None]),
        ({"sliding_window": 64}, [None, None]),
        ({**MISTRAL, "sliding_window": None}, [None, None]),
        ({**MISTRAL, "sliding_window": 64}, [64, 64]),
        ({**MISTRAL}, [4096, 4096]),
        ({**QWEN2, **SLIDES, "use_sliding_window": False}, [None, None]),
        ({**QWEN2, **SLIDES, "max_window_layers": 2}, [None, None]),
        ({**QWEN2, **SLIDES, "max_window_layers": 1}, [None, 64]),
        ({**QWEN2, **SLIDES, "max_window_layers": 0}, [64, 64]),
        ({**QWEN2, **SLIDES, "max_window_layers": 0, "sliding_window": None}, [None, None]),
        ({**QWEN2, **SLIDES, "layer_types": ["full_attention"] * 2}, [None, None]),
        ({**QWEN2, **SLIDES, "layer_types": ["full_attention", "sliding_attention"]}, [None, 64]),
        ({**GEMMA2, "sliding_window": 64}, [64, None]),
        ({**PHI3}, [None, None]),
        ({**PHI3, "sliding_window": 64}, [64, 64]),
        ({**GEMMA2}, [4096, None]),
        ({**GEMMA3, "sliding_window": 64}, [64, 64]),
        ({**GEMMA3, "sliding_window": 64, "sliding_window_pattern": 2}, [64, None]),
    ],
)
def test_windows_of_layers(changes, windows):
    config = parse(**changes)
    assert [kind.window for kind in config.layers] == windows
    assert config.windows(65) == tuple(None if window is None or window > 64 else window for window in windows)
    assert config.windows(64) == (None, None), "a window that hides nothing is none"
    assert config.context_length() == 512, "sequences may be longer than a window"


def test_ropes_of_layers_with_a_window():
    published = {**GEMMA3, "sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    config = parse(**published, rope_theta=1e6, rope_local_base_freq=5e3)
    sliding, full = (kind.rope for kind in config.layers)
    assert (sliding.kind, sliding.theta, full.kind, full.factor, full.theta) == ("default", 5e3, "linear", 8.0, 1e6)
    ropes = {"sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}
    ropes["full_attention"] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    saved = {**GEMMA3, "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": ropes}
    assert parse(**saved).layers == config.layers
    bare = parse_config({key: value for key, value in {**TINY, **GEMMA3}.items() if key != "rope_theta"})
    assert bare.layers[0].rope.theta == 1e4
    with pytest.raises(ModelError, match="sliding_window is null"):
        parse(**GEMMA2, sliding_window=None)
    with pytest.raises(ModelError, match="use_bidirectional_attention is True"):
        parse(**GEMMA3, use_bidirectional_attention=True)


def test_the_context_is_never_stretched_silently():
    with pytest.raises(ModelError, match=r"max_model_len is 513.*512"):
        parse().context_length(513)
    with pytest.raises(ModelError, match=r"dynamic"):
        parse(rope_scaling={"type": "dynamic", "factor": 2.0}).context_length(513)
    yarn = parse(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512})
    assert yarn.context_length() == 512
    assert yarn.context_length(2048) == 2048
    with pytest.raises(ModelError, match=r"2049"):
        yarn.context_length(2049)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"architectures is \['GPT2LMHeadModel'\]"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r"LlamaForSequenceClassification"),
        ({"model_type": "mixtral"}, r"model_type is 'mixtral'"),
        ({"model_type": "qwen3"}, r"model_type is 'qwen3' but architectures"),
        ({"hidden_act": "relu"}, r"hidden_act is 'relu'"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config.quant_method is None"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, r"rope_type is 'proportional'"),
        ({"rope_scaling": {"type": "linear"}}, r"factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, r"factor is '2'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 1}}, r"beta_fast is 1"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, r"per layer type"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0.5"),
        ({"rope_theta": -1}, r"rope_theta is -1"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads is 3"),
        ({"hidden_size": 66}, r"hidden_size is 66"),
        ({"head_dim": 15}, r"head_dim is 15"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers is 0"),
        ({"num_hidden_layers": True}, r"num_hidden_layers is True"),
        ({"vocab_size": None}, r"vocab_size is missing"),
        ({"rms_norm_eps": "small"}, r"rms_norm_eps is 'small'"),
        ({"tie_word_embeddings": "yes"}, r"tie_word_embeddings is 'yes'"),
        ({"eos_token_id": "<end>"}, r"eos_token_id is '<end>'"),
        ({"torch_dtype": "float8_e4m3fn"}, r"dtype is 'float8_e4m3fn'"),
        ({**QWEN2, "layer_types": ["chunked_attention", "full_attention"]}, r"chunked_attention"),
        ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping is 30.0"),
        ({"rope_interleaved": True}, r"rope_interleaved is True"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_value(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(**changes)


def test_all_reasons_are_told_at_once():
    with pytest.raises(ModelError) as caught:
        parse(hidden_act="relu", rope_theta=-1, vocab_size=None, num_experts=8, head_dim="16", eos_token_id=[-1], dtype="int8")
    for reason in ("hidden_act is 'relu'", "rope_theta is -1", "vocab_size is missing", "num_experts is 8", "head_dim is '16'",
                   "eos_token_id is [-1]", "dtype is 'int8'"):  # fmt: skip
        assert reason in str(caught.value)


def test_unknown_fields_that_transformers_ignores_are_ignored():
    parse(
        use_cache=True, pretraining_tp=1, attention_dropout=0.0, initializer_range=0.02, _name_or_path="x", unsloth_fixed=True
    )


def test_a_folder_that_is_no_model_is_said_to_be_none(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_config(tmp_path / "nothing")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ModelError, match="it is a file"):
        load_config(file)
    with pytest.raises(ModelError, match=r"holds no config\.json$"):
        load_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="it is a LoRA adapter"):
        load_config(tmp_path)
    for broken in ("", "{", "[]", "\xff"):
        (tmp_path / "config.json").write_bytes(broken.encode("latin-1"))
        with pytest.raises(ModelError, match=r"config\.json"):
            load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="num_attention_heads is missing"):
        load_config(tmp_path)


ODD_SCALARS = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    10**400,
    0.0,
    0.5,
    -1.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "(",
    "default",
]
ODD_CONTAINERS = [[], [1], ["x"], [None], [[1]], [True], {}, {"x": 1}, {"x": [1]}, {"(": -1}, {"": 1e300}, [1.5, "layers"]]
ANYTHING = st.sampled_from([*ODD_SCALARS, *ODD_CONTAINERS])
FIELDS = sorted(
    {*TINY, "head_dim", "rope_parameters", "rope_scaling", "sliding_window", "layer_types", "use_sliding_window", "dtype"}
    | {"original_max_position_embeddings", "max_window_layers", "attention_bias", "mlp_bias", "partial_rotary_factor"}
)
ROPE_FIELDS = ["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "attention_factor", "truncate", "beta_fast"]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=2),
    st.none() | st.dictionaries(st.sampled_from(ROPE_FIELDS), ANYTHING | st.sampled_from(["yarn", "llama3", 2.0]), max_size=4),
    st.dictionaries(st.sampled_from(["eos_token_id", "do_sample", "temperature", "top_k"]), ANYTHING, max_size=2),
)
def test_any_value_in_any_field_is_read_or_refused(model_type, changes, rope, generation):
    raw = {**TINY, "architectures": None, "model_type": model_type, "rope_scaling": rope, **changes}
    try:
        config = parse_config(raw, generation)
        config.context_length()
    except ModelError:
        pass


PUBLISHED = {
    "granite-3.3-2b-instruct": {
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "attention_multiplier": 0.015625, "bos_token_id": 0, "embedding_multiplier": 12.0,
        "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "logits_scaling": 8.0,
        "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000000.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49159,
    },
    "Phi-4-mini-instruct": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False, "bos_token_id": 199999,
        "embd_pdrop": 0.0, "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False, "max_position_embeddings": 131072,
        "mlp_bias": False, "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1.0 + i for i in range(48)], "short_factor": [1.0] * 48, "type": "longrope"},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "vocab_size": 200064,
    },
    "SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False, "eos_token_id": 128012,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False, "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
        "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
        "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 128256,
    },
    "OLMo-2-0425-1B": {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "attention_bias": False, "eos_token_id": 100257,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False, "torch_dtype": "float32",
        "vocab_size": 100352,
    },
    "GLM-4-9B-0414": {
        "architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "attention_bias": False, "attention_dropout": 0.0,
        "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 13696, "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 40,
        "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 151552,
    },
}  # fmt: skip
"""The fields of config.json of models that people have."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name):
    config = parse_config(PUBLISHED[name])
    assert len(config.layers) == config.shape.num_layers
    expected = {
        "granite-3.3-2b-instruct": (131072, 0.015625, 0, 64),
        "Phi-4-mini-instruct": (4096, 128**-0.5, 0, 96),
        "SmolLM3-3B": (65536, 128**-0.5, 9, 128),
        "OLMo-2-0425-1B": (4096, 128**-0.5, 0, 128),
        "GLM-4-9B-0414": (32768, 128**-0.5, 0, 64),
    }[name]
    num_still = sum(kind.rope is None for kind in config.layers)
    rotary_dim = config.rope.rotary_dim(config.shape.head_dim)
    assert (config.context_length(), config.attention_scale, num_still, rotary_dim) == expected
    assert not any(config.layers[layer].rope is None for layer in (0, 1, 2))


@pytest.mark.parametrize(
    ("architecture", "changes", "messages"),
    [
        ("Granite", {"embedding_multiplier": 0, "logits_scaling": "8"}, ["embedding_multiplier is 0", "logits_scaling is '8'"]),
        ("Granite", {"final_logit_softcapping": 30.0}, ["final_logit_softcapping is 30.0; a granite model"]),
        ("SmolLM3", {"no_rope_layers": [1]}, [r"no_rope_layers is [1]; allowed: a list of num_hidden_layers (2)"]),
        ("SmolLM3", {"no_rope_layers": [2, 0]}, ["no_rope_layers holds 2"]),
        ("SmolLM3", {"embedding_multiplier": 2.0}, ["embedding_multiplier is 2.0; a smollm3 model"]),
        ("Phi3", {"partial_rotary_factor": 1.5}, ["partial_rotary_factor is 1.5"]),
        ("Phi3", {"partial_rotary_factor": 0.4, "head_dim": 16, "num_key_value_heads": 4}, []),
        ("Phi3", {"partial_rotary_factor": 0.33, "head_dim": 16}, ["partial_rotary_factor is 0.33", "head_dim (16)"]),
        ("Cohere", {"use_qk_norm": True, "logit_scale": -1}, ["use_qk_norm is True", "logit_scale is -1"]),
        ("Gemma", {"use_bidirectional_attention": True}, ["use_bidirectional_attention is True"]),
        ("Olmo2", {"rope_scaling": {"full_attention": {}}}, ["per layer type is not supported"]),
        ("HyperCLOVAX", {"use_post_norm": False}, ["use_post_norm is False"]),
        (
            "Glm4",
            {"num_hidden_layers": 1 << 30},
            ["num_hidden_layers is 1073741824; allowed: an integer of 1 or more, at most"],
        ),
    ],
)
def test_what_a_family_cannot_honour_is_refused(architecture, changes, messages):
    family = FAMILIES[f"{architecture}ForCausalLM"]
    raw = {**TINY, "architectures": [family.architecture], "model_type": family.model_type, **changes}
    if not messages:
        assert parse_config(raw).rope.rotary_dim(16) == 6
        return
    with pytest.raises(ModelError) as caught:
        parse_config(raw)
    for message in messages:
        assert message in str(caught.value)
