"""Folders that are written in few bits: ordinary, whole or not there, and the same model as one quantised at its start."""

import json

import pytest
import torch

from evenflow.base.errors import ConfigError
from evenflow.cli.main import main
from evenflow.serving.backends.devices.quantised_products import QuantisedWeight
from evenflow.serving.models.load import load_model
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.quantised_folder import write_quantised
from evenflow.serving.models.random.random_model import make_model
from evenflow.serving.models.weights import load_weights
from evenflow.serving.quant.schemes import QUANTIZATIONS
from evenflow.serving.text import Tokenizer

CPU = torch.device("cpu")


FUSED = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": None}


@pytest.fixture(
    scope="module", params=[{}, {"tie_word_embeddings": True}, FUSED], ids=["untied", "tied", "linears stored as one"]
)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(path, **request.param)
    return path


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4-g32"])
def test_it_is_the_model_that_quantising_at_the_start_makes(folder, tmp_path, scheme):
    before, after = write_quantised(folder, tmp_path / "out", scheme)
    assert after < before
    read = load_weights(tmp_path / "out", load_config(tmp_path / "out"), torch.float32, CPU)
    made = load_weights(folder, load_config(folder), torch.float32, CPU, None, QUANTIZATIONS[scheme])
    for a, b in zip(read.layers, made.layers):
        for x, y in ((a.attention.qkv, b.attention.qkv), (a.attention.o, b.attention.o),
                     (a.mlp.gate_up, b.mlp.gate_up), (a.mlp.down, b.mlp.down)):  # fmt: skip
            assert isinstance(x, QuantisedWeight)
            assert isinstance(y, QuantisedWeight)
            assert torch.equal(x.parts[0].packed, y.parts[0].packed)
    assert isinstance(read.head, QuantisedWeight)
    assert isinstance(made.head, QuantisedWeight)
    assert torch.equal(read.head.parts[0].packed, made.head.parts[0].packed)
    assert read.norm.shape == made.norm.shape
    assert Tokenizer.from_folder(tmp_path / "out").encode("ab c") == Tokenizer.from_folder(folder).encode("ab c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_is_there_or_quantised_already_stays(folder, tmp_path):
    write_quantised(folder, tmp_path / "out", "int8")
    with pytest.raises(ConfigError, match="is there already"):
        write_quantised(folder, tmp_path / "out", "int8")
    with pytest.raises(ConfigError, match="is quantised already"):
        write_quantised(tmp_path / "out", tmp_path / "again", "int8")
    with pytest.raises(ConfigError, match=r"already .evenflow int8, matrices as stored"):
        load_model(tmp_path / "out", load_config(tmp_path / "out"), torch.float32, quantization="int4")
    with pytest.raises(ConfigError, match=r"quantization is 'int2'; allowed"):
        write_quantised(folder, tmp_path / "again", "int2")
    assert not (tmp_path / "again").exists()


def test_the_commands(folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 40)
    assert main(["quantize", str(folder), str(tmp_path / "out"), "--scheme", "int4"]) == 0
    arguments = ["--texts", str(text), "--length", "32", "--tokens", "64", "--dtype", "float32"]
    assert main(["eval", str(tmp_path / "out"), "--against", str(folder), *arguments, "--json", str(tmp_path / "q.json")]) == 0
    rows = json.loads((tmp_path / "q.json").read_text())["results"]["rows"]
    assert [row["label"] for row in rows] == [folder.name, "out"]
    assert rows[1]["kl"] > 0
    assert main(["eval", str(folder), "--texts", str(text)]) == 1
    assert main(["eval", str(folder), "--quantization", "int8", "--texts", str(tmp_path / "none")]) == 1
    assert "nothing to compare" in capsys.readouterr().err
