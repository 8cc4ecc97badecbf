"""Text as the tokens of a model's own tokenizer: windows for a token-level language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenflow.base.errors import ConfigError
from evenflow.mcbench.tasks.task import Split, Task


def token_windows(tokenizer: Any, text: str, length: int, most: int = 0) -> Tensor:
    """Return token ids [windows, ``length``] int64 of a text, cut end to end; at most ``most`` windows, 0: all.

    What is left at the end is dropped. No special tokens are added. Raises ConfigError if not one window can be filled.
    """
    # The tokenizer warns that the text is longer than the model's context; windows are not.
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    count = len(ids) // length
    if count == 0:
        raise ConfigError(f"the text has {len(ids)} tokens; needed: {length} for one window")
    windows = ids[: count * length].view(count, length)
    return windows[:most] if most else windows


def token_task(name: str, tokenizer: Any, text: str, digest: str, is_pinned: bool, length: int = 128) -> Task:
    """Return a next-token task over a text; its last twentieth is for testing. Raises ConfigError for a short text."""
    windows = token_windows(tokenizer, text, length)
    if len(windows) < 2:
        raise ConfigError(f"task {name}: the text has {len(windows)} window of {length} tokens; needed: 2 and more")
    edge = len(windows) - max(1, len(windows) // 20)
    train, test = (Split({"input_ids": part}, part) for part in (windows[:edge], windows[edge:]))
    return Task(name, "language", train, test, 0, ("loss",), len(tokenizer), length, digest, is_pinned, "")


def read_text(path: str | Path) -> str:
    """Return a text file. Raises ConfigError naming what is wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a UTF-8 text: {error}") from error
    if not text.strip():
        raise ConfigError(f"{path} is empty")
    return text
