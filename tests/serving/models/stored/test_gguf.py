"""GGUF files: every type exactly as the gguf package takes it apart, the tokenizer as the folder's, and faults by name."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

gguf = pytest.importorskip("gguf", reason="pip install 'evenflow[gguf]'")

from gguf_models import SIZES, dequantised, write_gguf  # noqa: E402

from evenflow.base.errors import ConfigError, ModelError  # noqa: E402
from evenflow.serving.models.load import load_model  # noqa: E402
from evenflow.serving.models.model_config import load_config  # noqa: E402
from evenflow.serving.models.random.random_model import make_model  # noqa: E402
from evenflow.serving.models.stored import gguf_blocks  # noqa: E402
from evenflow.serving.models.stored.gguf_file import GGUFTensor, read_gguf  # noqa: E402
from evenflow.serving.models.stored.gguf_folder import model_folder  # noqa: E402
from evenflow.serving.models.stored.stored_weights import open_weights  # noqa: E402
from evenflow.serving.text import Tokenizer  # noqa: E402

BLOCKS = {"Q8_0": (34, 32, [0]), "Q4_0": (18, 32, [0]), "Q4_1": (20, 32, [0, 2])}
BLOCKS |= {"Q4_K": (144, 256, [0, 2]), "Q5_K": (176, 256, [0, 2]), "Q6_K": (210, 256, [208])}
"""Bytes and weights of a block, and where its half-precision numbers are."""


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_any_bytes_mean_what_the_gguf_package_says(name):
    size, width, halves = BLOCKS[name]
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, (5, 3 * size), dtype=np.uint8)
    blocks = data.reshape(5, 3, size)
    for at in halves:
        blocks[..., at : at + 2] = generator.normal(size=(5, 3)).astype(np.float16).view(np.uint8).reshape(5, 3, 2)
    expected = torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]))
    tensor = GGUFTensor(name, (5, 3 * width), data)
    assert torch.equal(gguf_blocks.widened(tensor), expected)
    if name in gguf_blocks.EXACT:
        assert torch.equal(gguf_blocks.grouped(tensor).dequantise(), expected)


def mixed(name):
    """The types of a file of several: as Q4_K_M and others are."""
    if name == "token_embd.weight":
        return "Q8_0"
    return "Q8_0" if "attn_v" in name else "Q4_1" if "ffn" in name else "Q4_0"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(folder / "hf", **SIZES)
    write_gguf(folder / "hf", folder / "tiny.gguf", mixed, template="{{ messages[0]['content'] }}")
    return folder


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("type_of", [mixed, lambda name: "F16"], ids=["mixed", "F16"])
def test_weights_are_those_of_the_file(tmp_path, architecture, type_of):
    changes: dict[str, dict] = {"llama": {}, "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}}
    changes["qwen3"] = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}
    make_model(tmp_path / "hf", **SIZES, **changes[architecture], tie_word_embeddings=architecture != "qwen2")
    write_gguf(tmp_path / "hf", tmp_path / "tiny.gguf", type_of, architecture=architecture)
    folder = model_folder(tmp_path / "tiny.gguf", tmp_path / "cache")
    given, made = load_config(tmp_path / "hf"), load_config(folder)
    for field in ("shape", "architecture", "rope", "tie_word_embeddings", "has_qkv_bias", "layers", "eos_token_ids"):
        assert getattr(made, field) == getattr(given, field), field
    expected = dequantised(tmp_path / "tiny.gguf", tmp_path / "hf")
    with open_weights(folder) as stored:
        assert stored.is_quantised == (type_of is mixed)
        for name, value in expected.items():
            assert torch.equal(stored.tensor(name), value), name
            matrix = stored.grouped(name) if value.ndim == 2 else None
            assert matrix is None or torch.equal(matrix.dequantise(), value), name
        assert torch.equal(stored.part("model.layers.0.self_attn.q_proj.weight", range(3, 9), range(32)),
                           expected["model.layers.0.self_attn.q_proj.weight"][3:9, :32])  # fmt: skip


def test_a_model_of_several_types_computes_what_its_folder_would(model, tmp_path):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from model_harness import Harness

    folder = model_folder(model / "tiny.gguf", tmp_path)
    make_model(tmp_path / "plain", **SIZES)
    save_file(dequantised(model / "tiny.gguf", model / "hf"), tmp_path / "plain" / "model.safetensors")
    logits = []
    for path in (folder, tmp_path / "plain"):
        harness = Harness(path, load_config(path))
        _, found = harness.generate([[5, 9, 200, 31], [7] * 20], 4)
        logits.append(torch.stack([torch.as_tensor(some) for some in found]))
    # Activations of 8 bits: a hundredth of the logits, whose sizes are around 3.
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[1].abs().max()


def test_the_folder_has_the_tokenizer_and_the_template(model, tmp_path):
    folder = model_folder(model / "tiny.gguf", tmp_path)
    made, given = Tokenizer.from_folder(folder), Tokenizer.from_folder(model / "hf")
    for text in ("Hello world", "é ∀ 😀", "a\n\n  b 12345", "<s>x"):
        assert made.encode(text) == given.encode(text)
        assert made.decode(made.encode(text)) == given.decode(given.encode(text))
    assert (folder / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"
    assert model_folder(model / "tiny.gguf", tmp_path) == folder
    assert model_folder(model / "hf", tmp_path) == model / "hf"


def test_a_changed_file_is_another_folder(model, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes((model / "tiny.gguf").read_bytes())
    first = model_folder(path, tmp_path / "cache")
    path.write_bytes((model / "tiny.gguf").read_bytes())
    assert model_folder(path, tmp_path / "cache") != first
    assert json.loads((first / "gguf.json").read_text())["gguf"] == str(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused_by_name(model, tmp_path, share):
    path = tmp_path / "cut.gguf"
    data = (model / "tiny.gguf").read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        model_folder(path, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/*/config.json"))


def test_what_is_not_known_is_named(model, tmp_path):
    path = tmp_path / "odd.gguf"
    write_gguf(model / "hf", path, lambda name: "Q5_0" if "ffn_up" in name else "F16")
    with pytest.raises(ModelError, match=r"ffn_up.weight is of the type Q5_0; supported: F32, F16"):
        read_gguf(path)
    write_gguf(model / "hf", path, mixed, architecture="falcon")
    with pytest.raises(ModelError, match=r"general.architecture is 'falcon'; supported: llama"):
        model_folder(path, tmp_path)


def test_a_quantised_file_is_not_quantised_again(model, tmp_path):
    folder = model_folder(model / "tiny.gguf", tmp_path)
    with pytest.raises(ConfigError, match=r"quantization is 'int8', and the weights are quantised already \(GGUF"):
        load_model(folder, load_config(folder), torch.float32, quantization="int8")


def test_without_the_package_the_install_command_is_said(model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'evenflow\[gguf\]'"):
        read_gguf(model / "tiny.gguf")
