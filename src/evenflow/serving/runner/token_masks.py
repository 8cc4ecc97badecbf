"""What the grammars of a step's requests forbid, for all constrained rows at once.

Legend: L rows, M of them with a mask, V vocabulary, B bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evenflow.base.errors import ConstraintFailed
from evenflow.serving.core.plan import SampleSpec


@dataclass(frozen=True, slots=True)
class Forbidden:
    """``tokens_LV``: bool, true where a token may not come; None if no row is constrained. ``failed``: why, by row."""

    tokens_LV: torch.Tensor | None
    failed: dict[int, str]


def forbidden_tokens(specs: Sequence[SampleSpec], vocab_size: int, device: torch.device) -> Forbidden:
    """Read the masks of ``specs``, waiting for those that are still computed. Rows without a mask forbid nothing.

    Tokens beyond a mask are those that only an adapter knows: they are not in the base model's grammar. A row whose
    constraint has failed is left alone.
    """
    constrained = [i for i, spec in enumerate(specs) if spec.mask is not None]
    if not constrained:
        return Forbidden(None, {})
    failed: dict[int, str] = {}
    rows: list[int] = []
    words: list[np.ndarray] = []
    for i in constrained:
        mask = specs[i].mask
        assert mask is not None
        try:
            words.append(np.frombuffer(mask.words(), dtype=np.uint8))
            rows.append(i)
        except ConstraintFailed as error:
            failed[i] = str(error)
    # Bits of what is forbidden, lowest first. The last byte's bits beyond the vocabulary are never read.
    packed_LB = np.zeros((len(specs), (vocab_size + 7) // 8), dtype=np.uint8)
    if rows:
        allowed_MB = np.stack(words)
        for k in np.flatnonzero(~allowed_MB.any(axis=1)).tolist():
            failed[rows[k]] = "the constraint allows no further token"
        known = min(allowed_MB.shape[1], packed_LB.shape[1])
        if len(rows) == len(specs):
            np.invert(allowed_MB[:, :known], out=packed_LB[:, :known])
            packed_LB[:, known:] = 0xFF
        else:
            packed_LB[rows, :known] = ~allowed_MB[:, :known]
            packed_LB[rows, known:] = 0xFF
        if failed:
            packed_LB[list(failed)] = 0
    bits_LV = np.unpackbits(packed_LB, axis=1, count=vocab_size, bitorder="little")
    return Forbidden(torch.from_numpy(bits_LV.view(np.bool_)).to(device), failed)


__all__ = ["Forbidden", "forbidden_tokens"]
