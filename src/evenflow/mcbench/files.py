"""Full-size tasks from local files: GLUE, CIFAR, and plain text. Nothing is ever downloaded.

A data root holds a folder per task (``glue/mrpc``, ``cifar10``, ``text``) with one file or folder per split: GLUE
``train`` and ``validation`` (or ``test``; MNLI ``validation_matched``), as tsv, csv, jsonl or parquet (through the
``datasets`` library); CIFAR as image folders (``train/LABEL/*.png``, ``test/LABEL/*.png``).
Splits and metrics are the official ones; STS-B is a regression.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evenflow.base.errors import ConfigError
from evenflow.mcbench.reference import CHAR_VOCABULARY, WORD_VOCABULARY, encode_pair, language_split, word_ids
from evenflow.mcbench.tasks import Split, Task


@dataclass(frozen=True, slots=True)
class Columns:
    """What a GLUE task's files hold."""

    first: str
    second: str | None
    num_labels: int
    metrics: tuple[str, ...]
    test: str = "validation"


GLUE: Mapping[str, Columns] = {
    "cola": Columns("sentence", None, 2, ("matthews", "accuracy")),
    "sst2": Columns("sentence", None, 2, ("accuracy",)),
    "mrpc": Columns("sentence1", "sentence2", 2, ("f1", "accuracy")),
    "stsb": Columns("sentence1", "sentence2", 1, ("pearson", "spearman")),
    "qqp": Columns("question1", "question2", 2, ("f1", "accuracy")),
    "mnli": Columns("premise", "hypothesis", 3, ("accuracy",), "validation_matched"),
    "qnli": Columns("question", "sentence", 2, ("accuracy",)),
    "rte": Columns("sentence1", "sentence2", 2, ("accuracy",)),
}
_SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")


def load_file_task(name: str, root: Path, tokenizer: str | Path | None = None, length: int = 128) -> Task:
    """Return a task of a data root. Raises ConfigError naming the files that are missing."""
    folder = root / name
    if not folder.is_dir():
        raise ConfigError(f"task {name}: there is no folder {folder}")
    if name == "text":
        return _text(folder)
    if name.startswith("cifar"):
        return _cifar(name, folder)
    columns = GLUE[name.removeprefix("glue/")]
    encode, vocabulary = _encoder(tokenizer, length)
    train, first_digest = _glue_split(_rows(folder, ("train",)), columns, encode)
    test, second_digest = _glue_split(_rows(folder, (columns.test, "test")), columns, encode)
    digest = hashlib.sha256((first_digest + second_digest).encode()).hexdigest()
    return Task(
        name, "sentences", train, test, columns.num_labels, columns.metrics, vocabulary, length, digest, False, "bert-tiny"
    )


def _rows(folder: Path, splits: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the rows of the first split that exists."""
    for split in splits:
        for suffix in _SUFFIXES:
            path = folder / f"{split}{suffix}"
            if path.is_file():
                rows = list(_read(path))
                if not rows:
                    raise ConfigError(f"{path} has no rows")
                return rows
    raise ConfigError(f"{folder} has no {' or '.join(splits)} file; allowed endings: {', '.join(_SUFFIXES)}")


def _read(path: Path) -> Iterable[dict[str, Any]]:
    if path.suffix == ".parquet":
        try:
            from datasets import load_dataset
        except ImportError:
            raise ConfigError(f"{path}: parquet needs the datasets library: pip install 'evenflow[mcbench]'") from None
        return load_dataset("parquet", data_files=str(path), split="train")
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file if line.strip()]
        if path.suffix == ".tsv":
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return list(csv.DictReader(file))


def _encoder(tokenizer: str | Path | None, length: int) -> tuple[Any, int]:
    """Return (function of a pair of texts -> ids, types, mask; vocabulary size)."""
    if tokenizer is None:

        def hashed(first: str, second: str) -> tuple[list[int], list[int], list[int]]:
            return encode_pair(word_ids(first), word_ids(second), length)

        return hashed, WORD_VOCABULARY
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True)

    def tokenized(first: str, second: str) -> tuple[list[int], list[int], list[int]]:
        pair = loaded(first, second or None, truncation=True, max_length=length, padding="max_length")
        return pair["input_ids"], pair.get("token_type_ids", [0] * length), pair["attention_mask"]

    return tokenized, len(loaded)


def _glue_split(rows: list[dict[str, Any]], columns: Columns, encode: Any) -> tuple[Split, str]:
    wanted = [name for name in (columns.first, columns.second, "label") if name]
    missing = [name for name in wanted if name not in rows[0]]
    if missing:
        raise ConfigError(f"columns {', '.join(missing)} are missing; the file has {', '.join(map(str, rows[0]))}")
    digest = hashlib.sha256()
    encoded, labels = [], []
    for row in rows:
        first, second = str(row[columns.first]), str(row[columns.second]) if columns.second else ""
        digest.update(f"{first}\x1f{second}\x1f{row['label']}\n".encode())
        encoded.append(encode(first, second))
        labels.append(float(row["label"]))
    ids, types, mask = (torch.tensor(column) for column in zip(*encoded))
    values = torch.tensor(labels, dtype=torch.float32 if columns.num_labels == 1 else torch.int64)
    if columns.num_labels > 1 and not bool(((values >= 0) & (values < columns.num_labels)).all()):
        raise ConfigError(f"labels from {int(values.min())} to {int(values.max())}; allowed: 0 to {columns.num_labels - 1}")
    return Split({"input_ids": ids, "token_type_ids": types, "attention_mask": mask}, values), digest.hexdigest()


def _cifar(name: str, folder: Path) -> Task:
    """Return CIFAR from image folders ``train/LABEL/*.png`` and ``test/LABEL/*.png``."""
    import numpy as np
    from PIL import Image

    digest = hashlib.sha256()
    splits = []
    labels = sorted(path.name for path in (folder / "train").glob("*") if path.is_dir())
    if not labels:
        raise ConfigError(f"{folder} has no image folders train/LABEL/*.png")
    for split in ("train", "test"):
        images, numbers = [], []
        for number, label in enumerate(labels):
            for path in sorted((folder / split / label).glob("*.png")):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                digest.update(pixels.tobytes())
                images.append(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1) / 127.5 - 1.0)
                numbers.append(number)
        if not images:
            raise ConfigError(f"{folder / split} has no images")
        splits.append(Split({"pixel_values": torch.stack(images)}, torch.tensor(numbers)))
    return Task(name, "image", splits[0], splits[1], len(labels), ("accuracy",), sha256=digest.hexdigest())


def _text(folder: Path) -> Task:
    """Return a character language model over all ``*.txt`` files of a folder."""
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise ConfigError(f"{folder} has no .txt files")
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    train, test = language_split(text, 128)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Task("text", "language", train, test, 0, ("loss",), CHAR_VOCABULARY, 128, digest, False, "llama-tiny")
