"""The tasks of the benchmark: offline ones from installed packages, full-size ones from local files. Never a download.

A task is plain tensors, split once and for all; seeds change the model and the order of batches, not the data. What was
read is identified by sha256: a known Python or data version must match, an unknown one is used and reported as unpinned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.mcbench.names import FILE_TASKS, TASKS

_PINNED = {
    "digits": {"any": "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"},
    "topics": {"3.11.7": "aa4790f28039907878232b5b444de05544457972ddcaf0073ad7c7fe039eb948"},
}


IGNORED = -100
"""Label of a position that counts for nothing."""


@dataclass(frozen=True, slots=True)
class Split:
    """Model inputs by name, each [examples, ...], and labels [examples] (or [examples, length] for a language model)."""

    inputs: Mapping[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the inputs and labels of those examples."""
        return {name: value[index] for name, value in self.inputs.items()}, self.labels[index]


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its data, and what a model for it needs to know."""

    name: str
    kind: str
    """image, sentences, language (next token), or masked (hidden words; labels are IGNORED elsewhere)."""
    train: Split
    test: Split
    num_labels: int
    metrics: tuple[str, ...]
    """The first one is the headline."""
    vocab_size: int = 0
    length: int = 0
    sha256: str = ""
    is_pinned: bool = False
    default_model: str = ""

    @property
    def is_regression(self) -> bool:
        """Whether labels are real numbers."""
        return self.num_labels == 1


def load_task(name: str, data_root: str | Path | None = None, tokenizer: str | Path | None = None) -> Task:
    """Return a task by name. Raises RegistryError for unknown names and ConfigError for missing or changed data."""
    images = {"digits": _digits, "digits-low": _low_digits, "digits-high": _high_digits}
    if name in images:
        return images[name]()
    from evenflow.mcbench.tasks.reference import REFERENCE_TASKS

    if name in REFERENCE_TASKS:
        return REFERENCE_TASKS[name]()
    from evenflow.mcbench.tasks.file_tasks import load_file_task

    if name not in FILE_TASKS:
        raise RegistryError(f"unknown task {name!r}; known: {', '.join(TASKS)}, and with --data-root: {', '.join(FILE_TASKS)}")
    if data_root is None:
        raise ConfigError(f"task {name} needs --data-root, a folder that holds {name}")
    return load_file_task(name, Path(data_root), tokenizer)


def check_pin(name: str, version: str, digest: str) -> bool:
    """Return whether the data is the pinned one; False if no pin is known. Raises ConfigError if it differs from its pin."""
    pins = _PINNED[name]
    expected = pins.get(version, pins.get("any"))
    if expected is not None and expected != digest:
        raise ConfigError(f"data of {name} has sha256 {digest}; the pinned data of version {version} has {expected}")
    return expected is not None


def _digits() -> Task:
    """Return scikit-learn's 1797 handwritten digits, 8 x 8; every fifth of a fixed shuffle is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("task digits needs scikit-learn: pip install 'evenflow[mcbench]'") from None
    data = load_digits()
    digest = hashlib.sha256(data.images.astype("uint8").tobytes() + data.target.astype("uint8").tobytes()).hexdigest()
    is_pinned = check_pin("digits", "any", digest)
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8.0 - 1.0
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[::5], torch.cat([order[i::5] for i in range(1, 5)])
    return Task(
        "digits",
        "image",
        Split({"pixel_values": images[train]}, labels[train]),
        Split({"pixel_values": images[test]}, labels[test]),
        num_labels=10,
        metrics=("accuracy",),
        sha256=digest,
        is_pinned=is_pinned,
        default_model="vit-tiny",
    )


def _half_of_digits(name: str, classes: range) -> Task:
    """Return the digits of some classes, with the split of ``digits``: to pre-train on one half, to fine-tune on the other."""
    digits = _digits()

    def some(split: Split) -> Split:
        index = ((split.labels >= classes.start) & (split.labels < classes.stop)).nonzero().view(-1)
        inputs, labels = split.batch(index)
        return Split(inputs, labels - classes.start)

    return replace(digits, name=name, train=some(digits.train), test=some(digits.test), num_labels=len(classes))


def _low_digits() -> Task:
    return _half_of_digits("digits-low", range(5))


def _high_digits() -> Task:
    return _half_of_digits("digits-high", range(5, 10))
