"""The tasks of the benchmark: offline ones from installed packages, full-size ones from local files. Never a download.

A task is plain tensors, split once and for all; seeds change the model and the order of batches, not the data. What was
read is identified by sha256: a known Python or data version must match, an unknown one is used and reported as unpinned.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.mcbench.names import FILE_TASKS, TASKS

_PINNED = {
    "digits": {"any": "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"},
    "topics": {"3.11.7": "aa4790f28039907878232b5b444de05544457972ddcaf0073ad7c7fe039eb948"},
}


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
    """image, sentences or language."""
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
    makers = {"digits": _digits, "chars": _chars, "pairs": _pairs}
    if name in makers:
        return makers[name]()
    from evenflow.mcbench.files import load_file_task

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


def topics_text() -> tuple[dict[str, str], str, bool]:
    """Return (topic -> text, sha256, is pinned) of the language reference that ships with Python."""
    from pydoc_data.topics import topics  # type: ignore[import-not-found,import-untyped,unused-ignore]

    joined = "\n".join(f"{key}\n{topics[key]}" for key in sorted(topics))
    digest = hashlib.sha256(joined.encode()).hexdigest()
    version = ".".join(map(str, sys.version_info[:3]))
    return dict(sorted(topics.items())), digest, check_pin("topics", version, digest)


def char_ids(text: str) -> Tensor:
    """Return one id per character: printable ASCII and newline as 3 + code - 32, everything else as 2."""
    codes = torch.tensor(list(text.encode("ascii", "replace")), dtype=torch.int64)
    ids = torch.where((codes >= 32) & (codes < 127), codes - 32 + 3, 2)
    return torch.where(codes == 10, 98, ids)


CHAR_VOCABULARY = 100


def language_split(text: str, length: int, test_share: float = 0.1) -> tuple[Split, Split]:
    """Cut a text into windows of ``length`` characters; the last share of it is for testing."""
    ids = char_ids(text)
    count = len(ids) // length
    windows = ids[: count * length].view(count, length)
    edge = count - max(1, int(count * test_share))
    return (
        Split({"input_ids": windows[:edge]}, windows[:edge]),
        Split({"input_ids": windows[edge:]}, windows[edge:]),
    )


def _chars() -> Task:
    """Return a character language model over Python's own language reference."""
    topics, digest, is_pinned = topics_text()
    train, test = language_split("\n".join(topics.values()), 64)
    return Task(
        "chars",
        "language",
        train,
        test,
        num_labels=0,
        metrics=("loss",),
        vocab_size=CHAR_VOCABULARY,
        length=64,
        sha256=digest,
        is_pinned=is_pinned,
        default_model="llama-tiny",
    )


WORD_VOCABULARY = 2048
_WORD = re.compile(r"[A-Za-z_]+|[0-9]+|[^\sA-Za-z_0-9]")


def word_ids(text: str) -> list[int]:
    """Return hashed word ids, 4 and above; 0 pads, 1 starts, 2 separates."""
    words = _WORD.findall(text.lower())
    return [
        4 + int.from_bytes(hashlib.blake2b(w.encode(), digest_size=4).digest(), "little") % (WORD_VOCABULARY - 4) for w in words
    ]


def encode_pair(first: list[int], second: list[int], length: int) -> tuple[list[int], list[int], list[int]]:
    """Return (ids, token types, mask) of a pair, each cut to half the length and padded."""
    half = (length - 3) // 2
    first, second = first[:half], second[:half]
    ids = [1, *first, 2, *second, 2]
    types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    pad = length - len(ids)
    return ids + [0] * pad, types + [0] * pad, [1] * len(ids) + [0] * pad


def _pairs() -> Task:
    """Does this paragraph belong under this heading of the language reference? Half of the pairs are right.

    Headings with 20 paragraphs and more, repeated ones left out. Every fifth paragraph is for testing: test paragraphs
    are unseen, their headings are not.
    """
    length = 64
    topics, digest, is_pinned = topics_text()
    paragraphs = {key: [word_ids(p) for p in re.split(r"\n\s*\n", text)] for key, text in topics.items()}
    # What a pair shows of a paragraph; the reference repeats a good part of its text under several headings.
    shown_words = (length - 3) // 2
    times = Counter(tuple(p[:shown_words]) for several in paragraphs.values() for p in several)
    by_heading = {}
    for key, several in paragraphs.items():
        kept = [p for p in several if len(p) >= 12 and times[tuple(p[:shown_words])] == 1]
        if len(kept) >= 20:
            by_heading[key] = kept
    rng = random.Random(0)
    rows: dict[bool, list[tuple[list[int], list[int], list[int], int]]] = {True: [], False: []}
    headings = sorted(by_heading)
    for heading in headings:
        others = [other for other in headings if other != heading]
        for i, paragraph in enumerate(by_heading[heading]):
            is_test = i % 5 == 0
            for repeat in range(2 if is_test else 8):
                is_right = repeat % 2 == 0
                shown = heading if is_right else rng.choice(others)
                rows[is_test].append((*encode_pair(word_ids(shown), paragraph, length), int(is_right)))

    def split(is_test: bool) -> Split:
        ids, types, mask, labels = (torch.tensor(column) for column in zip(*rows[is_test]))
        return Split({"input_ids": ids, "token_type_ids": types, "attention_mask": mask}, labels)

    return Task(
        "pairs",
        "sentences",
        split(False),
        split(True),
        num_labels=2,
        metrics=("accuracy", "f1"),
        vocab_size=WORD_VOCABULARY,
        length=length,
        sha256=digest,
        is_pinned=is_pinned,
        default_model="bert-tiny",
    )
