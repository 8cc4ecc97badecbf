"""The offline image tasks: scikit-learn's 1797 handwritten digits, whole or by halves of the classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from evenflow.base.errors import ConfigError
from evenflow.mcbench.tasks.pins import check_pin
from evenflow.mcbench.tasks.task import Split, Task


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


DIGIT_TASKS: Mapping[str, Callable[[], Task]] = {
    "digits": _digits,
    "digits-low": _low_digits,
    "digits-high": _high_digits,
}
