"""What the grammars of a step's requests forbid, for all constrained rows at once. Legend: L rows, V vocabulary, B bytes."""

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
    num_bytes = (vocab_size + 7) // 8
    # Bits of what is forbidden, lowest first. The last byte's bits beyond the vocabulary are never read.
    packed_LB = np.zeros((len(specs), num_bytes), dtype=np.uint8)
    failed: dict[int, str] = {}
    for i in constrained:
        mask = specs[i].mask
        assert mask is not None
        try:
            allowed_B = np.frombuffer(mask.words(), dtype=np.uint8)[:num_bytes]
        except ConstraintFailed as error:
            failed[i] = str(error)
            continue
        if not allowed_B.any():
            failed[i] = "the constraint allows no further token"
            continue
        np.invert(allowed_B, out=packed_LB[i, : len(allowed_B)])
        packed_LB[i, len(allowed_B) :] = 0xFF
    bits_LV = np.unpackbits(packed_LB, axis=1, count=vocab_size, bitorder="little")
    return Forbidden(torch.from_numpy(bits_LV.view(np.bool_)).to(device), failed)


__all__ = ["Forbidden", "forbidden_tokens"]
