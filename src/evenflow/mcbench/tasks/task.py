"""What a task is: plain tensors, split once and for all. Seeds change the model and the order of batches, not the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

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
