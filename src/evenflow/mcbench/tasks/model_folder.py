"""Local folders of models and their tokenizers. Never a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evenflow.base.errors import ModelError

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def has_tokenizer(folder: str | Path) -> bool:
    """Return whether a model folder holds the files of a tokenizer."""
    return any((Path(folder) / name).is_file() for name in _TOKENIZER_FILES)


def load_tokenizer(folder: str | Path) -> Any:
    """Return the tokenizer of a local folder. Raises ModelError."""
    from transformers import AutoTokenizer

    path = Path(folder)
    if not has_tokenizer(path):
        model_folder(path)
        # transformers would make one without a word in it, and every text would be unknown.
        raise ModelError(f"{path} has no tokenizer; save the model's own there (one of {', '.join(_TOKENIZER_FILES)})")
    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path} has no tokenizer that can be loaded: {first}") from error


def model_folder(folder: str | Path) -> Path:
    """Return the folder as a path. Raises ModelError if there is no model in it."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model folder: it has no config.json")
    return path
