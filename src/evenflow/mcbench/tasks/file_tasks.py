"""Full-size tasks from local files: GLUE, CIFAR, Wikipedia and other text. Nothing is ever downloaded.

A data root holds a folder per task (``glue/mrpc``, ``cifar10``, ``wikipedia``, ``text``). GLUE: one file for ``train`` and one
for ``validation`` or ``dev`` (MNLI: matched), as tsv, csv, jsonl or parquet shards, with the columns of the Hugging Face hub or
of the archives of gluebenchmark.com. Scores are those of the official development split with the official metrics, never of a
test file; STS-B is a regression. CIFAR: see ``cifar``. A ``SHA256SUMS`` beside the files is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evenflow.base.errors import ConfigError
from evenflow.mcbench.tasks.cifar import load_cifar
from evenflow.mcbench.tasks.local_files import parquet_rows, table_rows, verify
from evenflow.mcbench.tasks.model_folder import load_tokenizer
from evenflow.mcbench.tasks.reference import (
    CHAR_VOCABULARY,
    LENGTH,
    MASK_ID,
    WORD_VOCABULARY,
    encode_pair,
    language_split,
    masked_split,
    word_ids,
)
from evenflow.mcbench.tasks.task import Split, Task
from evenflow.mcbench.tasks.token_text import token_task


@dataclass(frozen=True, slots=True)
class Columns:
    """What a GLUE task's files hold."""

    first: str
    second: str | None
    num_labels: int
    metrics: tuple[str, ...]
    is_matched: bool = False
    """Whether the development split has a matched and a mismatched half."""
    archive: tuple[str, ...] = ()
    """The archive's own names of (first, second, label), where they differ."""
    labels: tuple[str, ...] = ()
    """Label words of the archive, in the order of the hub's numbers."""
    header: tuple[str, ...] = ()
    """The archive's columns, where its files have no header."""


_ENTAILMENT = ("entailment", "not_entailment")
GLUE: Mapping[str, Columns] = {
    "cola": Columns("sentence", None, 2, ("matthews", "accuracy"), header=("source", "label", "mark", "sentence")),
    "sst2": Columns("sentence", None, 2, ("accuracy",)),
    "mrpc": Columns("sentence1", "sentence2", 2, ("f1", "accuracy"), archive=("#1 String", "#2 String", "Quality")),
    "stsb": Columns("sentence1", "sentence2", 1, ("pearson", "spearman"), archive=("sentence1", "sentence2", "score")),
    "qqp": Columns("question1", "question2", 2, ("f1", "accuracy"), archive=("question1", "question2", "is_duplicate")),
    "mnli": Columns(
        "premise",
        "hypothesis",
        3,
        ("accuracy",),
        is_matched=True,
        archive=("sentence1", "sentence2", "gold_label"),
        labels=("entailment", "neutral", "contradiction"),
    ),
    "qnli": Columns("question", "sentence", 2, ("accuracy",), labels=_ENTAILMENT),
    "rte": Columns("sentence1", "sentence2", 2, ("accuracy",), labels=_ENTAILMENT),
}
_SUFFIXES = (".tsv", ".csv", ".jsonl")
Row = dict[str, Any]


def load_file_task(name: str, root: Path, tokenizer: str | Path | None = None, length: int = 128) -> Task:
    """Return a task of a data root. Raises ConfigError naming the files that are missing."""
    folder = root / name
    if not folder.is_dir():
        raise ConfigError(f"task {name}: there is no folder {folder}")
    if name == "text":
        return _text(folder, tokenizer, length)
    if name == "wikipedia":
        return _wikipedia(folder, tokenizer, length)
    if name.startswith("cifar"):
        return load_cifar(name, folder)
    columns = GLUE[name.removeprefix("glue/")]
    encode, vocabulary = _encoder(tokenizer, length)
    halves = ("validation_matched", "dev_matched") if columns.is_matched else ("validation", "dev")
    train, first_digest = _glue_split(_rows(folder, ("train",), columns), columns, encode)
    test, second_digest = _glue_split(_rows(folder, halves, columns), columns, encode)
    digest = hashlib.sha256((first_digest + second_digest).encode()).hexdigest()
    return Task(
        name, "sentences", train, test, columns.num_labels, columns.metrics, vocabulary, length, digest, False, "bert-tiny"
    )


def _rows(folder: Path, splits: tuple[str, ...], columns: Columns) -> list[Row]:
    """Return the rows of the first split that exists, under the hub's names."""
    for split in splits:
        shards = sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")])
        tables = [path for suffix in _SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
        if not shards and not tables:
            continue
        rows = list(parquet_rows(shards)) if shards else _table(tables[0], columns)
        if not rows:
            raise ConfigError(f"{(shards or tables)[0]} has no rows")
        return [_as_on_the_hub(row, columns) for row in rows]
    raise ConfigError(f"{folder} has no {' or '.join(splits)} file; allowed endings: {', '.join((*_SUFFIXES, '.parquet'))}")


def _table(path: Path, columns: Columns) -> list[Row]:
    rows = table_rows(path)
    if columns.header and (not rows or columns.first not in rows[0]):
        return table_rows(path, columns.header)
    return rows


def _as_on_the_hub(row: Row, columns: Columns) -> Row:
    hub = (columns.first, columns.second, "label")
    renamed = dict(zip(columns.archive, hub)) if columns.archive and all(name in row for name in columns.archive) else {}
    out = {str(renamed.get(name, name)): value for name, value in row.items()}
    if columns.labels and out.get("label") in columns.labels:
        out["label"] = columns.labels.index(out["label"])
    return out


def _encoder(tokenizer: str | Path | None, length: int) -> tuple[Any, int]:
    """Return (function of a pair of texts -> ids, types, mask; vocabulary size)."""
    if tokenizer is None:

        def hashed(first: str, second: str) -> tuple[list[int], list[int], list[int]]:
            return encode_pair(word_ids(first), word_ids(second), length)

        return hashed, WORD_VOCABULARY

    loaded = load_tokenizer(tokenizer)

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
        try:
            labels.append(float(row["label"]))
        except (TypeError, ValueError):
            allowed = columns.labels or "a number"
            raise ConfigError(f"label {row['label']!r}; allowed: {allowed}") from None
    ids, types, mask = (torch.tensor(column) for column in zip(*encoded))
    values = torch.tensor(labels, dtype=torch.float32 if columns.num_labels == 1 else torch.int64)
    if columns.num_labels > 1 and not bool(((values >= 0) & (values < columns.num_labels)).all()):
        raise ConfigError(f"labels from {int(values.min())} to {int(values.max())}; allowed: 0 to {columns.num_labels - 1}")
    return Split({"input_ids": ids, "token_type_ids": types, "attention_mask": mask}, values), digest.hexdigest()


def _text(folder: Path, tokenizer: str | Path | None, length: int) -> Task:
    """Return a language model over all ``*.txt`` files of a folder: of tokens for a model folder, else of characters."""
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise ConfigError(f"{folder} has no .txt files")
    for path in paths:
        verify(path)
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if tokenizer is not None:
        return token_task("text", load_tokenizer(tokenizer), text, digest, False, length)
    train, test = language_split(text, length)
    return Task("text", "language", train, test, 0, ("loss",), CHAR_VOCABULARY, length, digest, False, "llama-tiny")


def _wikipedia(folder: Path, tokenizer: str | Path | None, length: int) -> Task:
    """Return masked-word pre-training over the ``text`` of parquet or jsonl files; every 20th document is for testing."""
    shards, lines = sorted(folder.glob("*.parquet")), sorted(folder.glob("*.jsonl"))
    if not shards and not lines:
        raise ConfigError(f"{folder} has no .parquet or .jsonl files with a column text")
    rows = list(parquet_rows(shards)) if shards else [row for path in lines for row in table_rows(path)]
    if not rows or "text" not in rows[0]:
        raise ConfigError(f"{(shards or lines)[0]}: no column text; it has {', '.join(rows[0]) if rows else 'no rows'}")
    loaded = None
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
    else:
        length = LENGTH
    digest = hashlib.sha256()
    ids: dict[bool, list[int]] = {True: [], False: []}
    for number, row in enumerate(rows):
        digest.update(f"{row['text']}\x1e".encode())
        ids[number % 20 == 0] += loaded(row["text"], truncation=False)["input_ids"] if loaded else word_ids(row["text"])
    for is_test, several in ids.items():
        if len(several) < length:
            which = "testing (every 20th document)" if is_test else "training"
            raise ConfigError(f"{folder}: {len(several)} words for {which}; needed: {length} and more")
    vocabulary, mask_id = (len(loaded), int(loaded.mask_token_id)) if loaded else (WORD_VOCABULARY, MASK_ID)
    train, test = (masked_split(ids[which], vocabulary, length, mask_id, 1, seed) for seed, which in enumerate((False, True)))
    return Task("wikipedia", "masked", train, test, 0, ("loss",), vocabulary, length, digest.hexdigest(), False, "bert-tiny")
