"""Weights, strictly: every tensor is used or the model is refused, and the refusal names it."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from evenflow.base.errors import ConfigError, ModelError
from evenflow.serving.models.load import has_fast_bfloat16, resolve_dtype
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.random.random_model import make_model
from evenflow.serving.models.weights import load_weights

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    make_model(tmp_path)
    return tmp_path


def load(folder, dtype=torch.float32):
    return load_weights(folder, load_config(folder), dtype, CPU)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_fused_matrices_are_the_files_rows_one_after_another(folder):
    tensors = load_file(folder / "model.safetensors")
    weights = load(folder)
    prefix = "model.layers.1."
    qkv = torch.cat([tensors[prefix + f"self_attn.{x}_proj.weight"] for x in "qkv"])
    gate_up = torch.cat([tensors[prefix + f"mlp.{x}_proj.weight"] for x in ("gate", "up")])
    assert torch.equal(weights.layers[1].attention.qkv, qkv)
    assert torch.equal(weights.layers[1].mlp.gate_up, gate_up)
    assert torch.equal(weights.head, tensors["lm_head.weight"])


def test_weights_are_converted_to_the_serving_dtype(folder):
    weights = load(folder, torch.bfloat16)
    stored = load_file(folder / "model.safetensors")["model.norm.weight"]
    assert torch.equal(weights.norm, stored.bfloat16())
    assert weights.layers[0].attention.qkv.dtype == torch.bfloat16


def test_shards_equal_a_single_file(folder, tmp_path):
    config = make_model(tmp_path / "sharded", num_shards=3)
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    one, many = load(folder), load_weights(tmp_path / "sharded", config, torch.float32, CPU)
    for a, b in zip(one.layers, many.layers):
        assert torch.equal(a.attention.qkv, b.attention.qkv)
        assert torch.equal(a.mlp.down, b.mlp.down)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            r"1 tensors are missing: model\.layers\.1\.mlp\.up_proj\.weight",
        ),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}), r"q_proj\.bias"),
        (lambda t: t.update({"extra": torch.zeros(1)}), r"1 tensors belong to no part.*extra"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(65)}), r"model\.norm\.weight is \[65\], the config says \[64\]"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}), r"model\.norm\.weight is torch\.int8"),
    ],
)
def test_every_tensor_is_used_or_the_model_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_the_rotary_buffer_of_old_checkpoints_is_no_weight(folder):
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    load(folder)


def test_tied_embeddings_may_be_stored_twice_but_not_differently(tmp_path):
    make_model(tmp_path, tie_word_embeddings=True)
    assert load(tmp_path).head is not None
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert torch.equal(load(tmp_path).head, load(tmp_path).embedding)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(ModelError, match=r"lm_head\.weight differs"):
        load(tmp_path)


def test_folders_without_usable_weights_say_so(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load(folder)
    path.unlink()
    with pytest.raises(ModelError, match=r"holds neither"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pickle"):
        load(folder)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": {"a": "../model.safetensors"}}',
        '{"weight_map": {"a": "no"}}',
    ],
)
def test_a_broken_index_of_shards_is_refused(tmp_path, index):
    make_model(tmp_path, num_shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"index"):
        load(tmp_path)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    make_model(tmp_path, num_shards=2)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    del index["weight_map"]["model.norm.weight"]
    file.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"disagree about model\.norm\.weight"):
        load(tmp_path)
    os.unlink(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"no file of the folder"):
        load(tmp_path)


def test_dtype_names():
    assert resolve_dtype("float32") is torch.float32
    assert resolve_dtype("bfloat16") is torch.bfloat16
    assert resolve_dtype("auto") is (torch.bfloat16 if has_fast_bfloat16() else torch.float32)
    assert resolve_dtype("auto", "cuda") is torch.bfloat16
    with pytest.raises(ConfigError, match="dtype is 'int4'"):
        resolve_dtype("int4")
