"""Real models: evaluation by the model's own tokenizer, dtypes with their gates, and tasks that mean nothing to them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from evenflow.base.errors import ConfigError, ModelError
from evenflow.cli.main import main
from evenflow.mcbench.runs.benchmark_models import make_model
from evenflow.mcbench.runs.build import task_of
from evenflow.mcbench.runs.language_eval import LanguageEval, evaluate_language
from evenflow.mcbench.runs.precision import precision
from evenflow.mcbench.runs.run import run
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.tasks.load import load_task
from evenflow.mcbench.tasks.model_folder import load_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog and the dog does not mind it at all " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model in bf16 with a tokenizer of its own, as a real one comes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator([TEXT], trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(path)
    model: Any = make_model("llama-tiny", 0, hidden_size=48, num_layers=2, num_heads=12, vocab_size=24, max_length=32)
    model.to(torch.bfloat16).save_pretrained(path)
    (path / "text.txt").write_text(TEXT)
    return path


def test_the_command_tells_what_compressors_do_to_the_loss(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(folder), "--text", str(folder / "text.txt"), "--tp", "3", "--dtype", "fp32", "--length", "16"]
    more = ["--tokens", "128", "--compress", "bf16,int8-g32", "--compress", "tp.forward=q2/one-shot"]
    assert main(["mcbench", "eval", *words, *more, "--json", str(folder / "out.json")]) == 0
    result = json.loads((folder / "out.json").read_text())
    rows = {row["spec"]: row for row in result["rows"]}
    assert list(rows) == ["none", "bf16", "int8-g32", "tp.forward=q2/one-shot"]
    assert rows["none"]["difference"] == 0.0
    assert rows["none"]["loss"] == pytest.approx(result["single_loss"], abs=1e-5)
    assert abs(rows["int8-g32"]["difference"]) < 0.01 < abs(rows["tp.forward=q2/one-shot"]["difference"])
    assert rows["bf16"]["bytes_share"] == pytest.approx(0.5)
    assert rows["int8-g32"]["bytes_share"] == pytest.approx(8.5 / 32, rel=0.02)
    # Two sums a layer of 48 fp32 numbers a token, 2 (W - 1) / W of them sent by each rank.
    assert rows["none"]["bytes_per_token"] == pytest.approx(2 * 2 * 48 * 4 * 4 / 3)
    assert (result["tokens"], result["parameters"]["model"]) == (128, folder.name)
    shown = capsys.readouterr().out
    # The same command with one more compressor evaluates that one alone.
    assert main(["mcbench", "eval", *words, *more, "--compress", "mxfp4", "--json", str(folder / "out.json")]) == 0
    again = json.loads((folder / "out.json").read_text())
    assert again["rows"][:4] == result["rows"]
    assert again["rows"][4]["spec"] == "mxfp4"
    assert capsys.readouterr().out.count("nats per token over") == 0, "the dense model is not evaluated again"
    assert "128 tokens, TP 3, fp32" in shown
    assert "tp.forward=q2/one-shot" in shown
    assert main(["mcbench", "report", str(folder / "out.json"), "--html", str(folder / "r.html")]) == 0
    page = (folder / "r.html").read_text()
    assert f"Loss of {folder.name}, TP 3" in page
    assert "mxfp4" in page


def test_the_loss_is_the_models_own_over_its_own_tokens(folder: Path) -> None:
    config = LanguageEval(model=str(folder), text=str(folder / "text.txt"), compress=(), dtype="fp32", length=8, tokens=24)
    result = evaluate_language(config)
    from transformers import AutoModelForCausalLM

    ids = torch.tensor(load_tokenizer(folder)(TEXT)["input_ids"][:24]).view(3, 8)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    expected = float(cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    assert result["single_loss"] == pytest.approx(expected, rel=1e-5)
    assert result["rows"][0]["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "autocast"])
def test_every_dtype_has_a_gate_of_its_own(folder: Path, dtype: str) -> None:
    config = LanguageEval(
        model=str(folder), text=str(folder / "text.txt"), compress=("int8-g32",), dtype=dtype, length=16, tokens=64
    )
    result = evaluate_language(config)
    assert 0 < result["parity"] <= precision(dtype).tolerance
    assert abs(result["rows"][1]["difference"]) < 0.05


def test_what_cannot_be_evaluated_is_named(folder: Path, tmp_path: Path) -> None:
    text = str(folder / "text.txt")

    def evaluate(**options: Any) -> None:
        evaluate_language(LanguageEval(**{"model": str(folder), "text": text, "length": 8, "tokens": 16, **options}))

    for options, words in (
        ({"compress": ("ae:8",)}, "is trained with the model, and an evaluation trains nothing"),
        ({"compress": ("pp=q8",)}, "allowed in an evaluation: tp.forward"),
        ({"model": "llama-tiny"}, "built-in model without training"),
        ({"tp": 1}, "tp is 1; allowed: 2 or more"),
        ({"dtype": "int8"}, "allowed: fp32, bf16, fp16, autocast"),
        ({"text": str(tmp_path / "no.txt")}, "cannot be read as a UTF-8 text"),
        ({"tp": 4}, "6 key-value heads cannot be split over 4 ranks"),
        ({"length": 64, "tokens": 64}, "the model's context holds 32"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluate(**options)
    config = LanguageEval(model=str(folder), text=text, compress=(), length=8, tokens=16)
    done = evaluate_language(config)
    with pytest.raises(ConfigError, match="of another evaluation: its tokens is 16, here 24"):
        evaluate_language(replace(config, tokens=24), before=done)
    with pytest.raises(ConfigError, match="of another evaluation: its tp is 2, here 3"):
        evaluate_language(replace(config, tp=3), before=done)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ConfigError, match="the text has 2 tokens; needed: 8"):
        evaluate(text=str(tmp_path / "short.txt"))


def test_numbers_of_ones_own_are_not_fed_to_a_trained_model(folder: Path, tmp_path: Path) -> None:
    for task in ("chars", "topics"):
        with pytest.raises(ConfigError, match=rf"task {task} has numbers of its own .* allowed: tokens"):
            task_of(RunConfig(task=task, model=str(folder)))
    with pytest.raises(ConfigError, match="task tokens needs --model FOLDER"):
        load_task("tokens")
    tokens = task_of(RunConfig(task="tokens", model=str(folder)))
    assert (tokens.kind, tokens.vocab_size, tokens.is_pinned) == ("language", len(load_tokenizer(folder)), tokens.is_pinned)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)
    own = task_of(RunConfig(task="text", model=str(folder), data_root=str(tmp_path)))
    assert int(own.train.inputs["input_ids"].max()) < len(load_tokenizer(folder))
    bare = tmp_path / "bare"
    make_model("llama-tiny", 0).save_pretrained(bare)
    with pytest.raises(ModelError, match="has no tokenizer"):
        task_of(RunConfig(task="text", model=str(bare), data_root=str(tmp_path)))


def test_training_in_bf16_and_in_autocast() -> None:
    small: dict[str, Any] = {"seeds": 1, "steps": 2, "batch": 4, "emulate": True, "tp": 2, "compress": "tp=int8-g32"}
    for dtype in ("bf16", "autocast"):
        result = run(RunConfig(task="digits", dtype=dtype, hidden=32, num_layers=2, **small))
        assert result["parity"]["parity"]["output_error"] < 1e-4
        assert 1e-6 < result["parity"]["parity"]["output_error_in_dtype"] <= precision(dtype).tolerance
        assert math.isfinite(result["loss"])
    with pytest.raises(ConfigError, match="fp16 needs loss scaling"):
        RunConfig(dtype="fp16")
    with pytest.raises(ConfigError, match="autocast over pipeline stages"):
        RunConfig(dtype="autocast", pp=2)
