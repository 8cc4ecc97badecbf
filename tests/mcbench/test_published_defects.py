"""Defects of the authors' published code (numbers as in docs/papers.md) that have no other home among the tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evenflow.base.errors import ConfigError
from evenflow.comm.compressors.lowrank import PowerSGD
from evenflow.mcbench.names import MODELS
from evenflow.mcbench.runs.benchmark_models import make_model
from evenflow.mcbench.split.attach import compression_of, emulate_model
from evenflow.mcbench.split.boundary import emulate_boundaries
from evenflow.mcbench.split.parity import first_tensor
from evenflow.mcbench.tasks.load import load_task


def test_3_each_site_has_the_rank_that_was_asked_for_there() -> None:
    """Theirs built the tensor-parallel factors with the pipeline's rank and never read its own."""
    model = emulate_model(make_model("vit-tiny", 0), 2, "tp.forward=powersgd:4; pp=powersgd:2")
    compression = compression_of(model)
    (boundary,) = emulate_boundaries(model, 2, compression, 1)
    ranks = {
        exchange.compressor.matrix_rank
        for exchange in compression.exchanges
        if exchange is not boundary and isinstance(exchange.compressor, PowerSGD)
    }
    assert ranks == {4}
    assert isinstance(boundary.compressor, PowerSGD)
    assert boundary.compressor.matrix_rank == 2
    first_tensor(model.train()(pixel_values=torch.randn(2, 1, 8, 8))).sum().backward()
    sites = compression.ledger.by_site
    # Batch 2, 17 patches, width 64, fp32; two rounds, and two ranks send 2 (W-1)/W = once what the plan says.
    assert sites["tp.forward"].counted / sites["tp.forward"].exchanges == (34 + 64) * 4 * 4
    assert sites["pp.forward"].counted == (34 + 64) * 2 * 4


@pytest.mark.parametrize("spec", ["powersgd:4", "topk:0.25", "int8-g32", "ae:8"])
def test_13_one_code_serves_every_family(spec: str) -> None:
    """Theirs repeats the compression in three copies (GPT, HF-BERT, HF-ViT) that must be kept alike by hand."""
    sizes = {}
    for name in MODELS:
        model = emulate_model(make_model(name, 0), 2, f"tp.forward={spec}; pp.forward={spec}")
        compression = compression_of(model)
        emulate_boundaries(model, 2, compression, 1)
        length = 17
        ids = torch.arange(2 * length).view(2, length) % 80 + 3
        inputs = {"pixel_values": torch.zeros(2, 1, 8, 8)} if name == "vit-tiny" else {"input_ids": ids}
        first_tensor(model.train()(**inputs)).sum().backward()
        compression.ledger.check_integrity()
        sizes[name] = {site: entry.counted for site, entry in compression.ledger.by_site.items()}
    # Equal widths, lengths and layers: equal bytes at every site, whatever the family.
    assert len(sizes) == len(MODELS)
    assert all(size == sizes["vit-tiny"] for size in sizes.values()), sizes


def test_12_cased_vocabularies_stay_cased_and_test_files_are_not_scored(tmp_path: Path) -> None:
    """Theirs lower-cases text for a cased vocabulary, and evaluates MRPC on the test file."""
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris", "paris", "is", "big"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt"), do_lower_case=False).save_pretrained(tmp_path / "model")
    folder = tmp_path / "glue" / "mrpc"
    folder.mkdir(parents=True)
    row = json.dumps({"sentence1": "Paris is big", "sentence2": "paris is big", "label": 1})
    (folder / "train.jsonl").write_text(row)
    (folder / "test.jsonl").write_text(row)
    with pytest.raises(ConfigError, match="has no validation or dev file"):
        load_task("glue/mrpc", tmp_path, tmp_path / "model")
    (folder / "validation.jsonl").write_text(row)
    ids = load_task("glue/mrpc", tmp_path, tmp_path / "model").test.inputs["input_ids"][0].tolist()
    assert ids[:9] == [2, 5, 7, 8, 3, 6, 7, 8, 3]
