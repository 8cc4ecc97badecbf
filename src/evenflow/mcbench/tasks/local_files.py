"""Reading local data files: checked against SHA256SUMS where there is one; parquet through the datasets library, offline."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError

SUMS = "SHA256SUMS"


def verify(path: Path) -> None:
    """Check a file against the ``SHA256SUMS`` beside it, if that names it. Raises ConfigError if they differ."""
    sums = path.parent / SUMS
    if not sums.is_file():
        return
    expected = {
        name.lstrip("*"): digest for digest, _, name in (line.partition("  ") for line in sums.read_text().splitlines())
    }
    if path.name not in expected:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected[path.name].strip():
        raise ConfigError(f"{path} has sha256 {found}; {sums} says {expected[path.name]}")


def parquet_rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of parquet files; images are decoded. Raises ConfigError without the datasets library."""
    for path in paths:
        verify(path)
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(f"{paths[0]}: parquet needs the datasets library: pip install 'evenflow[mcbench]'") from None
    try:
        yield from load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{paths[0]} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def table_rows(path: Path, header: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a tsv, csv or jsonl file. ``header`` names the columns of a file that has none."""
    verify(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file if line.strip()]
        if path.suffix == ".csv":
            return list(csv.DictReader(file, header))
        return list(csv.DictReader(file, header, delimiter="\t", quoting=csv.QUOTE_NONE))
