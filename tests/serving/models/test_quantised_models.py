"""Models quantised when they are loaded: near the model they were made of, adapters exact on top, and kept for next time."""

import pytest
import torch
from model_harness import Harness
from safetensors.torch import load_file

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.devices.quantised_products import QuantisedWeight, quantised_weight
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.load import load_model
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.random.random_model import make_model
from evenflow.serving.models.weights import load_weights
from evenflow.serving.parallel.linear import ColumnLinear
from evenflow.serving.quant.grouped_matrix import quantise
from evenflow.serving.quant.matrix_cache import MatrixCache
from evenflow.serving.quant.schemes import INT4, QUANTIZATIONS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(path, hidden_size=128, intermediate_size=160, tie_word_embeddings=True)
    return path


def quantised(folder, name, cache=None, dtype=torch.float32):
    return load_weights(folder, load_config(folder), dtype, CPU, None, QUANTIZATIONS[name], cache)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_matrices_are_the_quantised_matrices_of_the_file(folder, name):
    tensors, weights = load_file(folder / "model.safetensors"), quantised(folder, name)
    chosen = QUANTIZATIONS[name]
    qkv = torch.cat([tensors[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv"])
    assert torch.equal(weights.layers[1].attention.qkv.dequantise(torch.float32), quantise(qkv, chosen.linears).dequantise())
    embedding = quantise(tensors["model.embed_tokens.weight"], chosen.vocabulary).dequantise()
    assert weights.head is weights.embedding, "one matrix for both"
    assert torch.equal(weights.embedding.index_select(0, torch.tensor([7, 300])), embedding[[7, 300]])
    assert torch.equal(weights.norm, tensors["model.norm.weight"])


@pytest.mark.parametrize("name", ["int8", "int4", "int4-g32"])
def test_memory_is_that_of_the_formats(folder, name):
    weights, chosen = quantised(folder, name), QUANTIZATIONS[name]
    for layer in weights.layers:
        for matrix in (layer.attention.qkv, layer.attention.o, layer.mlp.gate_up, layer.mlp.down):
            assert isinstance(matrix, QuantisedWeight)
            outputs, inputs = matrix.shape
            assert matrix.num_bytes == pytest.approx(outputs * inputs * chosen.linears.bits_per_weight / 8, rel=0.05)


def test_ranks_hold_parts_of_the_same_codes(tmp_path):
    make_model(tmp_path, hidden_size=128, intermediate_size=192)
    config = load_config(tmp_path)
    whole = quantised(tmp_path, "int8").layers[0]
    for rank in range(2):
        shard = Shard(config.shape, rank, 2)
        part = load_weights(tmp_path, config, torch.float32, CPU, shard, QUANTIZATIONS["int8"]).layers[0]
        assert isinstance(whole.mlp.down, QuantisedWeight)
        assert isinstance(part.mlp.down, QuantisedWeight)
        assert isinstance(whole.mlp.gate_up, QuantisedWeight)
        assert isinstance(part.mlp.gate_up, QuantisedWeight)
        down = whole.mlp.down.dequantise(torch.float32)[:, 96 * rank : 96 * (rank + 1)]
        assert torch.equal(part.mlp.down.dequantise(torch.float32), down)
        gate_up = whole.mlp.gate_up.dequantise(torch.float32)
        expected = torch.cat([gate_up[first + 96 * rank : first + 96 * (rank + 1)] for first in (0, 192)])
        assert torch.equal(part.mlp.gate_up.dequantise(torch.float32), expected)


def test_an_embedding_of_its_own_stays_as_it_is(tmp_path):
    make_model(tmp_path, tie_word_embeddings=False)
    weights = quantised(tmp_path, "int4")
    assert torch.equal(weights.embedding, load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"])
    assert [part.bits for part in weights.head.parts] == [8]


@pytest.mark.parametrize(("name", "most"), [("int8", 0.05), ("int4", 0.5)])
def test_logits_are_near_those_of_the_model(folder, name, most):
    prompts = [[5, 9, 200, 31], [7, 8] * 10]
    found = []
    for quantization in ("none", name):
        harness = Harness(folder, load_config(folder))
        harness.model = load_model(folder, load_config(folder), torch.float32, quantization=quantization)
        harness.model.bind(harness.attention, harness.lora)
        found.append(torch.stack([torch.as_tensor(x) for x in harness.generate(prompts, 1)[1]]))
    error = (found[1] - found[0]).norm() / found[0].norm()
    assert 0 < error < most


def test_adapters_read_the_activations_as_they_are_and_add_to_the_sum():
    """So that what an adapter adds is the same as over the dequantised matrix."""
    seen = []

    class Adding:
        def run(self, layer, site, x_TI, y_TO):
            seen.append((layer, site, x_TI))
            y_TO += 100.0

    weight = quantised_weight([quantise(torch.randn(64, 96), INT4)], torch.bfloat16)
    linear, x_TI = ColumnLinear(weight, None, 3, "qkv"), torch.randn(5, 96).bfloat16()
    assert torch.equal(linear(x_TI, Adding()), linear(x_TI, None) + 100.0)
    assert seen == [(3, "qkv", x_TI)]
    assert seen[0][2] is x_TI


def test_what_was_quantised_is_read_next_time(folder, tmp_path):
    config = load_config(folder)
    for _ in range(2):
        load_model(folder, config, torch.float32, quantization="int8", cache_folder=tmp_path)
    (file,) = tmp_path.iterdir()
    with MatrixCache(tmp_path, file.stem) as cache:
        again = quantised(folder, "int8", cache)
    fresh = quantised(folder, "int8")
    assert file.stat().st_size > 0
    for a, b in zip(again.layers, fresh.layers):
        assert torch.equal(a.mlp.down.parts[0].packed, b.mlp.down.parts[0].packed)
    assert torch.equal(again.head.parts[0].packed, fresh.head.parts[0].packed)


def test_what_cannot_be_quantised_is_refused(folder):
    with pytest.raises(ConfigError, match="allowed: none, int8"):
        load_model(folder, load_config(folder), torch.float32, quantization="int3")
    with pytest.raises(ConfigError, match="the device is cuda"):
        load_model(folder, load_config(folder), torch.float32, "cuda", quantization="int8")
