"""Several adapters as one: the weighted sum of what they add, their LoRA ranks side by side.

    sum_i w_i B_i A_i x = [w_1 B_1 | w_2 B_2 | ...] [A_1; A_2; ...] x

What peft's ``add_weighted_adapter`` does as "cat": exact, whatever the LoRA ranks are. Made from rows that are laid out
already, so no folder is read again. numpy only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from evenflow.base.errors import AdapterRejected
from evenflow.serving.adapters.safetensors_arrays import round_to_bfloat16
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.core.shape import MODULES
from evenflow.serving.memory.layout import ArenaLayout, Part, place

MOST_PARTS = 8
"""Adapters that one request may name."""
HIGHEST_WEIGHT = 100.0

CombinedPart = tuple[str, AdapterRecord, np.ndarray, float]
"""(name, record, page image, weight)"""


def combine(parts: Sequence[CombinedPart], layout: ArenaLayout, max_lora_rank: int | None) -> tuple[AdapterRecord, np.ndarray]:
    """(record, page image) of the weighted sum of ``parts``. Raises AdapterRejected with every reason found."""
    told = " + ".join(f"{weight:g} x {name}" for name, _, _, weight in parts)
    reasons = [f"{name} changes more than linears; only plain LoRA can be combined" for name, r, _, _ in parts if _has_side(r)]
    reasons += [
        f"the weight of {name} is {weight}; allowed: a number from -{HIGHEST_WEIGHT:g} to {HIGHEST_WEIGHT:g}"
        for name, _, _, weight in parts
        if not math.isfinite(weight) or abs(weight) > HIGHEST_WEIGHT
    ]
    if not 1 <= len(parts) <= MOST_PARTS:
        reasons.append(f"it names {len(parts)} adapters; allowed: 1 to {MOST_PARTS}")
    if layout.shard is not None:
        reasons.append("several adapters on one request are not served on several tensor-parallel ranks")
    if reasons:
        raise AdapterRejected(told, reasons)
    ranks = np.sum([np.asarray(record.signature.lora_ranks, np.int64) for _, record, _, _ in parts], axis=0)
    if max_lora_rank is not None and ranks.max() > max_lora_rank:
        raise AdapterRejected(told, [f"together they have rank {ranks.max()}, above the configured maximum of {max_lora_rank}"])
    signature = AdapterSignature(tuple(tuple(int(r) for r in layer) for layer in ranks))
    placement = place(layout, signature)
    image = np.zeros((placement.num_pages, layout.page_bytes), np.uint8)
    flat, sources = image.reshape(-1), [(place(layout, r.signature), pages.reshape(-1), w) for _, r, pages, w in parts]
    both: tuple[Part, Part] = ("A", "B")
    for layer in range(layout.shape.num_layers):
        for index, module in enumerate(MODULES):
            if not ranks[layer, index]:
                continue
            for part in both:
                row_bytes = layout.row_bytes(layout.row_width(module, part))
                rows = []
                for source, pages, weight in sources:
                    offsets = source.row_offsets(layer, module, part)
                    found = pages[offsets[:, None] + np.arange(row_bytes)]
                    rows.append(found if part == "A" or weight == 1 else _scaled(found, weight, layout.itemsize, told))
                offsets = placement.row_offsets(layer, module, part)
                flat[offsets[:, None] + np.arange(row_bytes)] = np.concatenate(rows)
    digest = hashlib.sha256(repr([(record.digest, weight) for _, record, _, weight in parts]).encode()).hexdigest()
    return AdapterRecord(AdapterDigest(digest), signature, placement.num_pages, placement.size_bytes), image


def _has_side(record: AdapterRecord) -> bool:
    return bool(record.signature.side) or bool(record.signature.vocab_size)


def _scaled(rows: np.ndarray, weight: float, itemsize: int, told: str) -> np.ndarray:
    """Rows of stored elements (uint8 [n, bytes]), times ``weight``."""
    if itemsize == 2:
        values = (np.ascontiguousarray(rows).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        scaled = round_to_bfloat16(values * np.float32(weight))
        is_finite = bool(((scaled & 0x7F80) != 0x7F80).all())
    else:
        scaled = np.ascontiguousarray(rows).view(np.float32) * np.float32(weight)
        is_finite = bool(np.isfinite(scaled).all())
    if not is_finite:
        raise AdapterRejected(told, ["a weight exceeds the serving dtype"])
    return scaled.view(np.uint8)


__all__ = ["HIGHEST_WEIGHT", "MOST_PARTS", "CombinedPart", "combine"]
