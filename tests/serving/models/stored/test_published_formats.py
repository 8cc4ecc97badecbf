"""Quantised folders as others publish them: every weight means what its makers say, and faults are refused by name."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from published_formats import (
    awq,
    float_compressed,
    fp8_blocks,
    fp8_tensor,
    gptq,
    int8_rows,
    int_compressed,
    nf4,
    packed_compressed,
    write_folder,
)
from safetensors.torch import load_file, save_file

from evenflow.base.errors import ConfigError, ModelError
from evenflow.serving.models.load import load_model
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.stored.stored_weights import open_weights

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_harness import Harness


def of_gptq(**fields):
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True, **fields}


def of_compressed(kind, group=None, strategy="group", bits=4, symmetric=True, number="int"):
    weights = {"num_bits": bits, "type": number, "symmetric": symmetric, "strategy": strategy, "group_size": group}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FORMS = {
    "gptq": (gptq, of_gptq(), True),
    "gptq-asym": (partial(gptq, symmetric=False), of_gptq(sym=False), True),
    "gptq-one-group": (partial(gptq, group=-1), of_gptq(group_size=-1), True),
    "gptq-8": (partial(gptq, bits=8, group=64), of_gptq(bits=8, group_size=64), True),
    "gptq-v2": (partial(gptq, symmetric=False, v2=True), of_gptq(checkpoint_format="gptq_v2"), True),
    "gptq-act-order": (partial(gptq, symmetric=False, act_order=True), of_gptq(desc_act=True), False),
    "gptq-16": (partial(gptq, group=16), of_gptq(group_size=16), False),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, True),
    "compressed-int4": (packed_compressed, of_compressed("pack-quantized", 32), True),
    "compressed-int4-asym": (
        partial(packed_compressed, symmetric=False),
        of_compressed("pack-quantized", 32, symmetric=False),
        True,
    ),
    "compressed-int8": (int_compressed, of_compressed("int-quantized", strategy="channel", bits=8), True),
    "compressed-fp8": (float_compressed, of_compressed("float-quantized", None, "channel", 8, number="float"), False),
    "fp8-blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}, False),
    "fp8-tensor": (fp8_tensor, {"quant_method": "fp8", "activation_scheme": "static"}, False),
    "nf4": (partial(nf4, nested=False), NF4, False),
    "nf4-double": (nf4, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, False),
    "bnb-int8": (int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_weight_means_what_its_makers_say(tmp_path, name):
    store, config, is_kept = FORMS[name]
    meaning = write_folder(tmp_path, store, config)
    load_config(tmp_path)
    with open_weights(tmp_path) as stored:
        assert stored.is_quantised
        assert ("as stored" in stored.description) == is_kept
        assert dict(stored.shapes) == {name: tuple(value.shape) for name, value in meaning.items()}
        for tensor, value in meaning.items():
            matrix = stored.grouped(tensor)
            assert (matrix is not None) == (is_kept and tensor.endswith("_proj.weight")), tensor
            torch.testing.assert_close(stored.tensor(tensor), value, rtol=1e-6, atol=1e-7)
            if matrix is not None:
                torch.testing.assert_close(matrix.dequantise(), value, rtol=1e-6, atol=1e-6)
            if value.ndim == 2:
                part = stored.part(tensor, range(1, 9), range(32, 64))
                torch.testing.assert_close(part, value[1:9, 32:64], rtol=1e-6, atol=1e-7)


FUSED = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": None, "partial_rotary_factor": 0.5}
"""A family that stores q, k and v as one matrix, and gate and up as another."""


@pytest.mark.parametrize(
    ("name", "fields"),
    [*((name, {}) for name in ("gptq-asym", "awq", "fp8-blocks", "nf4-double")), ("gptq", FUSED), ("nf4", FUSED)],
)
def test_such_a_folder_computes_what_its_weights_mean(tmp_path, name, fields):
    store, config, is_kept = FORMS[name]
    meaning = write_folder(tmp_path / "quantised", store, config, **fields)
    write_folder(tmp_path / "plain", store, None, **fields)
    save_file({n: v.contiguous() for n, v in meaning.items()}, tmp_path / "plain" / "model.safetensors")
    logits = []
    for folder in (tmp_path / "quantised", tmp_path / "plain"):
        harness = Harness(folder, load_config(folder))
        logits.append(torch.stack([torch.as_tensor(x) for x in harness.generate([[5, 9, 200], [7] * 20], 1)[1]]))
    most = 0.03 if is_kept else 1e-4  # activations of 8 bits where codes are multiplied; the rest is in fp32 here
    assert (logits[0] - logits[1]).abs().max() <= most * logits[1].abs().max()


def changed(config, **fields):
    return {**config, **fields}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "quip"}, r"quant_method is 'quip'; supported: gptq, awq"),
        ({"bits": 4}, r"quant_method is None"),
        ("int4", r"quantization_config is 'int4'"),
        (of_gptq(bits=3), r"quantization_config.bits is 3; supported: 4, 8"),
        (of_gptq(group_size=0), r"group_size is 0; allowed: -1, or 1 and more"),
        (of_gptq(checkpoint_format="marlin"), r"checkpoint_format is 'marlin'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, r"version is 'gemv'"),
        (of_compressed("marlin-24"), r"format is 'marlin-24'; supported: pack-quantized"),
        (of_compressed("pack-quantized", strategy="token"), r"'token'; supported: tensor, channel, group"),
        ({"quant_method": "fp8", "weight_block_size": 128}, r"weight_block_size is 128"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, r"'int4'; supported: nf4, fp4"),
    ],
)
def test_what_is_not_known_is_named_before_anything_is_loaded(tmp_path, config, message):
    write_folder(tmp_path, gptq, config)
    with pytest.raises(ModelError, match=message):
        load_config(tmp_path)


def damage(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def load(folder):
    return load_model(folder, load_config(folder), torch.float32)


def test_damaged_folders_are_refused_by_name(tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    write_folder(tmp_path, gptq, of_gptq())
    damage(tmp_path, lambda tensors: tensors.pop(f"{name}.scales"))
    with pytest.raises(ModelError, match=r"q_proj is quantised, and model.layers.0.self_attn.q_proj.scales is missing"):
        load(tmp_path)
    write_folder(tmp_path, gptq, of_gptq())
    damage(
        tmp_path, lambda tensors: tensors.update({n: tensors[n][:3].contiguous() for n in (f"{name}.scales", f"{name}.qzeros")})
    )
    with pytest.raises(ModelError, match=r"q_proj: 3 groups do not divide 128 inputs"):
        load(tmp_path)
    write_folder(tmp_path, gptq, of_gptq())
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path)


def test_a_config_without_its_weights_is_refused(tmp_path):
    write_folder(tmp_path, awq, of_gptq())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ModelError, match="the config says fp8, and no tensor is quantised so"):
        load(tmp_path)


def test_a_quantised_folder_is_not_quantised_again(tmp_path):
    write_folder(tmp_path, awq, {"quant_method": "awq", "bits": 4, "group_size": 32})
    with pytest.raises(ConfigError, match=r"quantization is 'int4', and the weights are quantised already \(awq, matrices as"):
        load_model(tmp_path, load_config(tmp_path), torch.float32, quantization="int4")
