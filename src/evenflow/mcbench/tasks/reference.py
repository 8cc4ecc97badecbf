"""The offline text tasks: all made of the language reference that ships with Python, pinned by sha256.

``chars``: next character. ``words``: masked words (pre-training). ``topics``: which heading a paragraph is from.
``pairs``: does this paragraph belong under this heading?

The last three share one split: every fifth paragraph of a heading is for testing, so that what was seen in pre-training is
never tested on in fine-tuning.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from evenflow.mcbench.tasks.pins import check_pin
from evenflow.mcbench.tasks.task import IGNORED, Split, Task


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


def language_split(text: str, length: int, test_share: float = 0.04) -> tuple[Split, Split]:
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


LENGTH = 64
"""Words of an example of the paragraph tasks."""
Paragraphs = dict[str, list[list[int]]]
"""Heading -> word ids of each of its paragraphs."""


def paragraphs(smallest: int = 20) -> tuple[Paragraphs, str, bool]:
    """Return the paragraphs of the headings that have ``smallest`` and more, repeated ones left out; sha256; is pinned."""
    text_by_topic, digest, is_pinned = topics_text()
    several = {key: [word_ids(p) for p in re.split(r"\n\s*\n", text)] for key, text in text_by_topic.items()}
    # What a pair shows of a paragraph; the reference repeats a good part of its text under several headings.
    shown = (LENGTH - 3) // 2
    times = Counter(tuple(p[:shown]) for some in several.values() for p in some)
    kept = {key: [p for p in some if len(p) >= 12 and times[tuple(p[:shown])] == 1] for key, some in sorted(several.items())}
    return {key: some for key, some in kept.items() if len(some) >= smallest}, digest, is_pinned


def is_test(number: int) -> bool:
    """Whether the paragraph of that number within its heading is for testing."""
    return number % 5 == 0


def _rows_to_split(rows: list[tuple[list[int], list[int], list[int], int]]) -> Split:
    ids, types, mask, labels = (torch.tensor(column) for column in zip(*rows))
    return Split({"input_ids": ids, "token_type_ids": types, "attention_mask": mask}, labels)


def _pairs() -> Task:
    """Does this paragraph belong under this heading of the language reference? Half of the pairs are right."""
    by_heading, digest, is_pinned = paragraphs()
    rng = random.Random(0)
    rows: dict[bool, list[tuple[list[int], list[int], list[int], int]]] = {True: [], False: []}
    for heading, several in by_heading.items():
        others = [other for other in by_heading if other != heading]
        for i, paragraph in enumerate(several):
            for repeat in range(2 if is_test(i) else 8):
                is_right = repeat % 2 == 0
                shown = heading if is_right else rng.choice(others)
                rows[is_test(i)].append((*encode_pair(word_ids(shown), paragraph, LENGTH), int(is_right)))
    return Task(
        "pairs",
        "sentences",
        _rows_to_split(rows[False]),
        _rows_to_split(rows[True]),
        num_labels=2,
        metrics=("accuracy", "f1"),
        vocab_size=WORD_VOCABULARY,
        length=LENGTH,
        sha256=digest,
        is_pinned=is_pinned,
        default_model="bert-tiny",
    )


def _topics() -> Task:
    """Which heading of the language reference is this paragraph from?"""
    by_heading, digest, is_pinned = paragraphs()
    rows: dict[bool, list[tuple[list[int], list[int], list[int], int]]] = {True: [], False: []}
    for label, several in enumerate(by_heading.values()):
        for i, paragraph in enumerate(several):
            ids = [1, *paragraph[: LENGTH - 2], 2]
            pad = [0] * (LENGTH - len(ids))
            rows[is_test(i)].append((ids + pad, [0] * LENGTH, [1] * len(ids) + pad, label))
    return Task(
        "topics",
        "sentences",
        _rows_to_split(rows[False]),
        _rows_to_split(rows[True]),
        num_labels=len(by_heading),
        metrics=("accuracy",),
        vocab_size=WORD_VOCABULARY,
        length=LENGTH,
        sha256=digest,
        is_pinned=is_pinned,
        default_model="bert-tiny",
    )


MASK_ID = 3


def masked_split(ids: list[int], vocab_size: int, length: int, mask_id: int, repeats: int, seed: int) -> Split:
    """Cut ids into windows and hide 15 % of each as BERT does: 80 % masked, 10 % random, 10 % left; ``repeats`` draws of it."""
    count = len(ids) // length
    windows = torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length).repeat(repeats, 1)
    generator = torch.Generator().manual_seed(seed)
    # Equally many in each window, so that the mean over micro-batches is the mean over the batch.
    hidden = torch.rand(windows.shape, generator=generator).argsort(dim=1)[:, : max(1, round(0.15 * length))]
    is_hidden = torch.zeros_like(windows, dtype=torch.bool).scatter_(1, hidden, True)
    fate = torch.rand(windows.shape, generator=generator)
    random_ids = torch.randint(min(mask_id + 1, vocab_size - 1), vocab_size, windows.shape, generator=generator)
    shown = torch.where(is_hidden & (fate < 0.8), mask_id, windows)
    shown = torch.where(is_hidden & (fate >= 0.9), random_ids, shown)
    return Split({"input_ids": shown}, torch.where(is_hidden, windows, IGNORED))


def _words() -> Task:
    """Return a masked language model over the words of the language reference."""
    by_heading, digest, is_pinned = paragraphs()
    ids: dict[bool, list[int]] = {True: [], False: []}
    for several in by_heading.values():
        for i, paragraph in enumerate(several):
            ids[is_test(i)] += [*paragraph, 2]
    return Task(
        "words",
        "masked",
        masked_split(ids[False], WORD_VOCABULARY, LENGTH, MASK_ID, repeats=8, seed=0),
        masked_split(ids[True], WORD_VOCABULARY, LENGTH, MASK_ID, repeats=1, seed=1),
        num_labels=0,
        metrics=("loss",),
        vocab_size=WORD_VOCABULARY,
        length=LENGTH,
        sha256=digest,
        is_pinned=is_pinned,
        default_model="bert-tiny",
    )


REFERENCE_TASKS: Mapping[str, Callable[[], Task]] = {"chars": _chars, "words": _words, "topics": _topics, "pairs": _pairs}
