"""Full-size tasks from tiny local files in the official layouts: splits, labels, metrics, checksums, what is missing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evenflow.base.errors import ConfigError, ModelError
from evenflow.mcbench.tasks.file_tasks import GLUE
from evenflow.mcbench.tasks.load import load_task
from evenflow.mcbench.tasks.scores import scores

TRAIN, DEV = 5, 3


def hub_row(name: str, number: int) -> dict[str, Any]:
    columns = GLUE[name]
    texts = {column: f"text {number} of {name}" for column in (columns.first, columns.second) if column}
    return {**texts, "label": 0.5 * number if columns.num_labels == 1 else number % columns.num_labels, "idx": number}


def write_hub(root: Path, name: str, how: str) -> Path:
    folder = root / "glue" / name
    folder.mkdir(parents=True, exist_ok=True)
    dev = "validation_matched" if GLUE[name].is_matched else "validation"
    for split, count in (("train", TRAIN), (dev, DEV)):
        rows = [hub_row(name, number) for number in range(count)]
        if how == "parquet":
            datasets = pytest.importorskip("datasets")
            datasets.Dataset.from_list(rows).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
        elif how == "jsonl":
            (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        else:
            lines = [",".join(map(str, line)) for line in [list(rows[0]), *(list(row.values()) for row in rows)]]
            (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_model_folder_without_a_model_is_named(tmp_path: Path) -> None:
    write_hub(tmp_path, "mrpc", "jsonl")
    with pytest.raises(ModelError, match="nowhere is no model folder"):
        load_task("glue/mrpc", tmp_path, tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="has no tokenizer; save the model's own there"):
        load_task("glue/mrpc", tmp_path, tmp_path)


@pytest.mark.parametrize("how", ["parquet", "jsonl", "csv"])
def test_glue_as_on_the_hub(tmp_path: Path, how: str) -> None:
    for name, columns in GLUE.items():
        write_hub(tmp_path, name, how)
        task = load_task(f"glue/{name}", tmp_path)
        assert (len(task.train), len(task.test)) == (TRAIN, DEV)
        assert task.metrics == columns.metrics
        assert task.is_regression == (name == "stsb")
        assert task.train.inputs["input_ids"].shape == (TRAIN, 128)
    assert load_task("glue/stsb", tmp_path).test.labels.tolist() == [0.0, 0.5, 1.0]


ARCHIVE = {
    "cola": ("gj04\t1\t\tThe cat sat.", None, [1]),
    "sst2": ("a fine film\t1", "sentence\tlabel", [1]),
    "mrpc": ("0\t1\t2\tOne way.\tAnother way.", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", [0]),
    "stsb": ('0\tnews\tA "plane.\tAn aircraft.\t3.8', "index\tgenre\tsentence1\tsentence2\tscore", [3.8]),
    "qqp": ("1\t2\t3\tHow?\tWhy?\t1", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", [1]),
    "mnli": ("0\tA man.\tA woman.\tcontradiction", "index\tsentence1\tsentence2\tgold_label", [2]),
    "qnli": ("0\tWhere?\tHere.\tnot_entailment", "index\tquestion\tsentence\tlabel", [1]),
    "rte": ("0\tIt rains.\tIt is wet.\tentailment", "index\tsentence1\tsentence2\tlabel", [0]),
}


def test_glue_as_in_its_archives(tmp_path: Path) -> None:
    """tsv with a development split called dev, label words, other column names, CoLA without a header, quotes as they are."""
    for name, (row, header, labels) in ARCHIVE.items():
        folder = tmp_path / "glue" / name
        folder.mkdir(parents=True)
        for split in ("train", "dev_matched" if name == "mnli" else "dev"):
            (folder / f"{split}.tsv").write_text("\n".join(filter(None, [header, row])) + "\n")
        task = load_task(f"glue/{name}", tmp_path)
        assert task.test.labels.tolist() == pytest.approx(labels), name


def test_a_regression_is_scored_as_one(tmp_path: Path) -> None:
    write_hub(tmp_path, "stsb", "jsonl")
    task = load_task("glue/stsb", tmp_path)
    result = scores(task, torch.tensor([[0.1], [0.4], [1.2]]), task.test.labels)
    assert result["spearman"] == pytest.approx(1.0)
    assert result["pearson"] == pytest.approx(float(np.corrcoef([0.1, 0.4, 1.2], [0.0, 0.5, 1.0])[0, 1]))
    assert "accuracy" not in result


def test_bad_glue_files_are_named(tmp_path: Path) -> None:
    folder = write_hub(tmp_path, "rte", "csv")
    good = (folder / "train.csv").read_text()
    for text, message in (
        ("sentence1,label\nx,0\n", "columns sentence2 are missing"),
        ("sentence1,sentence2,label\nx,y,7\n", "allowed: 0 to 1"),
        ("sentence1,sentence2,label\nx,y,maybe\n", "label 'maybe'; allowed: .*entailment"),
        ("sentence1,sentence2,label\n", "has no rows"),
    ):
        (folder / "train.csv").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_task("glue/rte", tmp_path)
    (folder / "train.csv").write_text(good)
    (folder / "validation.csv").rename(folder / "test.csv")
    with pytest.raises(ConfigError, match="has no validation or dev file"):
        load_task("glue/rte", tmp_path)


def test_checksums_beside_the_files_are_kept(tmp_path: Path) -> None:
    folder = write_hub(tmp_path, "sst2", "csv")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.csv")}
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    assert len(load_task("glue/sst2", tmp_path).train) == TRAIN
    with (folder / "train.csv").open("a") as file:
        file.write("one more,1,9\n")
    with pytest.raises(ConfigError, match=r"train.csv has sha256 .*; .*SHA256SUMS says"):
        load_task("glue/sst2", tmp_path)


def cifar_record(label: list[int], seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, 3072, dtype=np.uint8)
    return bytes(label) + pixels.tobytes()


def test_cifar_in_its_binary_version(tmp_path: Path) -> None:
    ten, hundred = tmp_path / "cifar10" / "cifar-10-batches-bin", tmp_path / "cifar100"
    ten.mkdir(parents=True)
    hundred.mkdir()
    for batch in (1, 2):
        (ten / f"data_batch_{batch}.bin").write_bytes(cifar_record([batch], batch) + cifar_record([9], 7))
    (ten / "test_batch.bin").write_bytes(cifar_record([3], 3))
    task = load_task("cifar10", tmp_path)
    assert task.train.labels.tolist() == [1, 9, 2, 9]
    assert task.test.inputs["pixel_values"].shape == (1, 3, 32, 32)
    first = np.random.default_rng(1).integers(0, 256, 3072, dtype=np.uint8)[0]
    assert float(task.train.inputs["pixel_values"][0, 0, 0, 0]) == pytest.approx(first / 127.5 - 1.0)
    (hundred / "train.bin").write_bytes(cifar_record([4, 77], 1))
    (hundred / "test.bin").write_bytes(cifar_record([4, 99], 2))
    assert load_task("cifar100", tmp_path).test.labels.tolist() == [99]
    (hundred / "test.bin").write_bytes(b"short")
    with pytest.raises(ConfigError, match="whole records of 3074"):
        load_task("cifar100", tmp_path)
    (ten / "test_batch.bin").unlink()
    with pytest.raises(ConfigError, match=r"no test split .*test_batch.bin"):
        load_task("cifar10", tmp_path)


def test_cifar_as_parquet_and_as_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "cifar100"
    folder.mkdir()
    picture = Image.fromarray(np.full((32, 32, 3), 255, np.uint8))
    features = datasets.Features(img=datasets.Image(), fine_label=datasets.Value("int64"), coarse_label=datasets.Value("int64"))
    for split in ("train", "test"):
        made = datasets.Dataset.from_dict({"img": [picture], "fine_label": [42], "coarse_label": [1]}, features=features)
        made.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    task = load_task("cifar100", tmp_path)
    assert task.test.labels.tolist() == [42]
    assert float(task.test.inputs["pixel_values"].min()) == 1.0
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "cifar10" / split / label).mkdir(parents=True)
            picture.save(tmp_path / "cifar10" / split / label / "0.png")
    assert load_task("cifar10", tmp_path).train.labels.tolist() == [0, 1]


def test_wikipedia_and_plain_text(tmp_path: Path) -> None:
    folder = tmp_path / "wikipedia"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"no \.parquet or \.jsonl files"):
        load_task("wikipedia", tmp_path)
    rows = [{"id": str(n), "title": f"T{n}", "text": f"document number {n} " * 40} for n in range(25)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    from_lines = load_task("wikipedia", tmp_path)
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    from_parquet = load_task("wikipedia", tmp_path)
    assert from_lines.kind == "masked"
    assert from_lines.sha256 == from_parquet.sha256
    assert torch.equal(from_lines.train.inputs["input_ids"], from_parquet.train.inputs["input_ids"])
    (tmp_path / "text").mkdir()
    with pytest.raises(ConfigError, match=r"no \.txt files"):
        load_task("text", tmp_path)
    (tmp_path / "text" / "a.txt").write_text("many words " * 400)
    assert load_task("text", tmp_path).kind == "language"
