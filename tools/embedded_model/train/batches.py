"""Packs drawn text into rows of equal length.

Row b of step s depends on (seed, s, b) alone, so that an interrupted training continues with the text it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from tokenizers import Tokenizer

from embedded_model.tidewick.corpus import Piece

IGNORED = -100
"""The label of a token that is not trained on (torch's ignore_index)."""


def draw_batch(
    tokenizer: Tokenizer, draw: Callable[[Random], list[Piece]], rows: int, length: int, seed: str, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one batch: (token ids, labels), both int64 [rows, length]; labels are not shifted."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    labels = torch.full((rows, length), IGNORED, dtype=torch.long)
    for row in range(rows):
        rng = Random(f"{seed} {step} {row}")
        row_ids: list[int] = []
        row_labels: list[int] = []
        while len(row_ids) < length:
            pieces = draw(rng)
            for (_, is_trained), encoding in zip(pieces, tokenizer.encode_batch([text for text, _ in pieces]), strict=True):
                row_ids += encoding.ids
                row_labels += encoding.ids if is_trained else [IGNORED] * len(encoding.ids)
        ids[row] = torch.tensor(row_ids[:length])
        labels[row] = torch.tensor(row_labels[:length])
    return ids, labels
