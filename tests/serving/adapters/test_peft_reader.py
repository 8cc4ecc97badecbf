"""PEFT folders, strictly: what is honoured, what is refused, and that all reasons come at once."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file

from evenflow.base.errors import AdapterNotFound, AdapterRejected
from evenflow.serving.adapters.peft_config import read_rules
from evenflow.serving.adapters.peft_format import factor_names
from evenflow.serving.adapters.peft_reader import read_adapter
from evenflow.serving.core.shape import MODULES
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import TINY

CONFIG = parse_config(TINY)
SHAPE = CONFIG.shape
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path):
    return make_adapter(tmp_path / "a", CONFIG, lora_rank=4)


def edit_config(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def reasons_of(folder, **options):
    with pytest.raises(AdapterRejected) as caught:
        read_adapter(folder, SHAPE, **options)
    return caught.value.reasons


def test_weights_and_scale_are_the_files(folder):
    edit_config(folder, lora_alpha=10)
    tensors = load_file(folder / "adapter_model.safetensors")
    adapter = read_adapter(folder, SHAPE)
    assert adapter.signature.lora_ranks == ((4,) * 7,) * 2
    assert adapter.target_modules == MODULES
    np.testing.assert_array_equal(adapter.a(0, "q_proj"), tensors[Q0 + ".lora_A.weight"].numpy())
    np.testing.assert_array_equal(adapter.b_scaled(0, "q_proj"), tensors[Q0 + ".lora_B.weight"].numpy().T * np.float32(2.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_widened_exactly(tmp_path, dtype):
    folder = make_adapter(tmp_path, CONFIG, lora_rank=4, dtype=dtype)
    expected = load_file(folder / "adapter_model.safetensors")[Q0 + ".lora_A.weight"].float().numpy()
    np.testing.assert_array_equal(read_adapter(folder, SHAPE).a(0, "q_proj"), expected)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_inits_that_leave_the_base_alone_are_plain_lora(folder, init):
    edit_config(folder, init_lora_weights=init, eva_config={"rho": 2.0})
    read_adapter(folder, SHAPE)


def test_every_initialisation_of_the_installed_peft_is_judged(folder):
    """Those that peft names in its config, and those that its layers ask for."""
    source = inspect.getsource(LoraLayer)
    named = re.findall(r'init_lora_weights(?:\.lower\(\))?(?:\.startswith\(| == )"(\w+)"', source)
    assert {"pissa", "olora", "lora_ga", "eva"} <= set(named)
    for init in {*re.findall(r'"([a-z_]+)', str(LoraConfig.__annotations__["init_lora_weights"])), *named}:
        edit_config(folder, init_lora_weights=init)
        changes_base = re.search(rf"def {init}_init.*?(?=\n    def |\Z)", source, re.DOTALL)
        if changes_base is not None and re.search(r"base_layer(\(\))?\.weight\.data = ", changes_base[0]):
            assert "changes the base weights" in reasons_of(folder)[0], init
        else:
            read_adapter(folder, SHAPE)


def test_fields_that_are_not_known_are_warned_of_and_ignored(folder):
    edit_config(folder, field_of_the_future=7, another={"a": ["x" * 5000]}, a_third="\x1b[31m\nERROR")
    warnings = read_adapter(folder, SHAPE).warnings
    assert len(warnings) == 3
    assert warnings[0].startswith("field_of_the_future is 7")
    assert all(len(warning) < 400 and warning.isprintable() for warning in warnings)


def test_fields_at_their_defaults_and_training_fields_are_ignored(folder):
    edit_config(
        folder,
        lora_dropout=0.1,
        loftq_config={},
        megatron_core="megatron.core",
        qalora_group_size=16,
        peft_version="0.99",
        field_of_the_future=None,
        another=False,
        use_dora=False,
        modules_to_save=None,
        task_type=None,
        fan_in_fan_out=True,
    )
    read_adapter(folder, SHAPE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"use_dora": True}, "has no lora_magnitude_vector, but use_dora is true"),
        ({"use_dora": "yes"}, "use_dora is 'yes'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "has no lora_B.bias, but lora_bias is true"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, which has no weight"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'"),
        ({"modules_to_save": ["score"]}, "modules_to_save names score, which has no weight here; supported"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices names embed_tokens, which has no rows"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices is [-1]"),
        ({"trainable_token_indices": {"lm_head": []}}, "trainable_token_indices is {'lm_head': []}"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga', which changes the base weights"),
        ({"init_lora_weights": "novel"}, "init_lora_weights is 'novel'"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is [1, 2]"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is [[0, 1]]"),
        ({"use_qalora": True}, "use_qalora is True"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is"),
        ({"target_parameters": ["experts"]}, "target_parameters names experts, which has no tensors here"),
        ({"velora_config": {"a": 1}}, "velora_config is"),
        ({"monteclora_config": {"a": 1}}, "monteclora_config is"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config is"),
        ({"kasa_config": {"a": 1}}, "kasa_config is"),
        ({"megatron_config": {"a": 1}}, "megatron_config is"),
        ({"r": 0}, "r is 0"),
        ({"r": "8"}, "r is '8'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"rank_pattern": [1]}, "rank_pattern is [1]"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern['q_proj'] is -1"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern['q_proj'] is 'x'"),
        ({"rank_pattern": {"(q_proj": 2}}, "'(q_proj', which is no regular expression"),
        ({"target_modules": "(("}, "which is no regular expression"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"layers_to_transform": "all"}, "layers_to_transform is 'all'"),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, "cannot be used when target_modules is a string"),
        ({"layers_pattern": "layers"}, "layers_pattern is given without layers_to_transform"),
        ({"target_modules": [*MODULES, "lm_head"]}, "lm_head is named by target_modules, but has no tensors"),
        ({"target_modules": [*MODULES, "embed_tokens"]}, "model.embed_tokens is named by target_modules, but has no tensors"),
    ],
)
def test_configs_that_are_not_plain_lora_are_refused(folder, changes, reason):
    edit_config(folder, **changes)
    assert any(reason in r for r in reasons_of(folder)), reasons_of(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.update({"extra": torch.ones(1)}), "extra belongs to no part"),
        (
            lambda t: t.update({Q0 + ".lora_magnitude_vector": torch.ones(64)}),
            "has a lora_magnitude_vector, but use_dora is false",
        ),
        (lambda t: t.update({Q0 + ".lora_B.bias": torch.ones(64)}), "has a lora_B.bias, but lora_bias is false"),
        (lambda t: t.update({Q0 + ".weight": torch.ones(64, 64)}), "q_proj.weight is a weight of the base model"),
        (
            lambda t: t.update({Q0.replace("self_attn.q_proj", "input_layernorm.weight"): torch.ones(64)}),
            "modules_to_save does not",
        ),
        (lambda t: t.update({Q0.replace("base_model.model.", "") + ".lora_A.weight": torch.ones(4, 64)}), "says again what"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(320, 63)}), "lm_head.weight has shape [320, 63]"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(900_000, 1)}),
            "config and base model say [320, 64]",
        ),
        (lambda t: t.update({Q0.replace(".0.", ".2.") + ".lora_A.weight": torch.ones(4, 64)}), "layers.2.self_attn"),
        (lambda t: t.update({Q0.replace(".0.", ".00.") + ".lora_A.weight": torch.ones(4, 64)}), "layers.00.self_attn"),
        (lambda t: t.update({Q0.replace("self_attn", "mlp") + ".lora_A.weight": torch.ones(4, 64)}), "mlp.q_proj"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)}), "lm_head has lora_A alone"),
        (lambda t: t.pop(Q0 + ".lora_A.weight"), "model.layers.0.self_attn.q_proj has lora_B alone"),
        (lambda t: [t.pop(Q0 + f".lora_{p}.weight") for p in "AB"], "is named by target_modules, but has no tensors"),
        (
            lambda t: t.update({Q0 + ".lora_A.weight": torch.ones(5, 64)}),
            "has shape [5, 64], config and base model say [4, 64]",
        ),
        (lambda t: t.update({Q0 + ".lora_A.weight": torch.ones(4, 63)}), "has shape [4, 63]"),
        (
            lambda t: t.update({Q0 + ".lora_B.weight": torch.ones(4, 64)}),
            "has shape [4, 64], config and base model say [64, 4]",
        ),
        (lambda t: t.update({Q0 + ".lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}), "is I8"),
        (lambda t: t.update({Q0 + ".lora_A.weight": torch.ones(4, 64, dtype=torch.float64)}), "is F64"),
        (lambda t: t[Q0 + ".lora_B.weight"].fill_(float("nan")), "q_proj.lora_B.weight holds NaN or infinity"),
        (lambda t: t[Q0 + ".lora_A.weight"][0].fill_(float("-inf")), "q_proj.lora_A.weight holds NaN or infinity"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_every_tensor_is_used_and_sound_or_the_adapter_is_refused(folder, change, reason):
    edit_tensors(folder, change)
    assert any(reason in r for r in reasons_of(folder)), reasons_of(folder)


def test_tensors_that_the_config_does_not_name_are_refused(folder):
    edit_config(folder, target_modules=["q_proj"])
    reasons = reasons_of(folder)
    assert "model.layers.0.mlp.down_proj has tensors, but target_modules does not name it" in reasons
    assert "and 8 more of this kind" in reasons


def test_all_reasons_come_at_once(folder):
    edit_config(folder, use_qalora=True, bias="all", r=-1, init_lora_weights="pissa")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    text = " ".join(reasons_of(folder))
    for part in ("use_qalora", "bias", "r is -1", "pissa", "truncated"):
        assert part in text


def test_ranks_above_the_maximum_are_refused(folder):
    assert reasons_of(folder, max_lora_rank=3) == ("rank 4 is above the configured maximum of 3",)
    read_adapter(folder, SHAPE, max_lora_rank=4)
    edit_config(folder, rank_pattern={"q_proj": 65})
    assert any("above the model's hidden size" in reason for reason in reasons_of(folder))


def test_files_that_are_missing_or_broken(folder, tmp_path):
    with pytest.raises(AdapterNotFound, match="no such folder"):
        read_adapter(tmp_path / "nothing", SHAPE)
    with pytest.raises(AdapterNotFound, match=r"it holds no adapter_config\.json"):
        read_adapter(tmp_path, SHAPE)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for broken in (b"", whole[:7], whole[:100], whole[:-1], whole + b"x", b"\xff" * 100):
        weights.write_bytes(broken)
        assert any("truncated or no safetensors file" in reason for reason in reasons_of(folder))
    weights.unlink()
    (folder / "adapter_model.bin").write_bytes(b"x")
    assert any("weights-only loader" in reason for reason in reasons_of(folder))
    weights.write_bytes(whole)
    for broken in ("", "[]", "{"):
        (folder / "adapter_config.json").write_text(broken)
        assert any("adapter_config.json" in reason for reason in reasons_of(folder))


class _Evil:
    def __reduce__(self):
        return (open, ("/tmp/evenflow-was-here", "w"))


@pytest.mark.parametrize("content", [{"a": _Evil()}, {"a": 1}, [torch.ones(1)], {1: torch.ones(1)}, torch.ones(1)])
def test_files_of_torch_make_nothing_but_tensors(folder, content):
    (folder / "adapter_model.safetensors").unlink()
    torch.save(content, folder / "adapter_model.bin")
    assert any("adapter_model.bin" in reason for reason in reasons_of(folder))
    assert not Path("/tmp/evenflow-was-here").exists()


def test_dora_without_the_base_weights_is_refused(folder):
    edit_config(folder, use_dora=True)
    linears = [(layer, module) for layer in range(SHAPE.num_layers) for module in MODULES]
    width = SHAPE.module_widths
    edit_tensors(
        folder,
        lambda t: t.update(
            {
                factor_names(layer, m)[0].replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(width(m)[1])
                for layer, m in linears
            }
        ),
    )
    assert any("has DoRA, for which the base weight" in reason for reason in reasons_of(folder))


def test_identity_is_what_decides_the_outputs(tmp_path):
    def digest(name, **fields):
        return read_adapter(make_adapter(tmp_path / name, CONFIG, **{"lora_rank": 4, "alpha": 8, **fields}), SHAPE).digest

    same = digest("a")
    assert digest("b") == same
    assert digest("c", lora_dropout=0.5, target_modules=list(reversed(MODULES))) == same
    # alpha / r of 8 / 4 and, under rsLoRA, 4 / sqrt(4): the same arithmetic.
    assert digest("d", alpha=4, use_rslora=True) == same
    assert digest("e", alpha=9) != same
    assert digest("f", seed=1) != same
    assert digest("g", dtype=torch.bfloat16) != same


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
FIELDS = ["r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"]
FIELDS += ["layers_to_transform", "layers_pattern", "fan_in_fan_out", "init_lora_weights", "bias", "peft_type", "task_type"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), ANYTHING, max_size=3))
def test_any_value_in_any_field_is_read_or_refused(changes):
    reasons: list[str] = []
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], **changes}
    rules = read_rules(config, reasons)
    assert (rules is None) == bool(reasons)
    if rules is not None:
        for module in ("model.layers.0.self_attn.q_proj", "lm_head"):
            rules.is_target(module)
            assert rules.lora_rank_of(module) >= 1
            assert np.isfinite(rules.scale_of(module))
