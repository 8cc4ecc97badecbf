"""Adapters padded to one LoRA rank, as servers with adapter slots hold them: for comparison, not for serving.

Every adapter takes the room, the loads and the products of ``max_lora_rank`` at each of its modules, whatever its own
LoRA rank is (vLLM's slots); the factor rows beyond its own are zeros. Wraps what the catalog answers; knows neither arena
nor requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from evenflow.base.errors import ConfigError
from evenflow.serving.adapters.row_file import MemoryRows, RowFile
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.core.shape import MODULES
from evenflow.serving.memory.layout import ArenaLayout, Part, place


@dataclass(frozen=True, slots=True)
class _Padding:
    """How the rows of one signature go into the image of the padded one."""

    signature: AdapterSignature
    runs: tuple[tuple[int, int, int], ...]
    """(from byte, to byte, bytes)"""
    source: np.ndarray
    image: np.ndarray
    """Reused by all adapters of the signature: what is not one of their rows stays zero."""


class PaddedAdapters:
    """``record`` and ``host_rows`` of adapters as if each of their modules had ``max_lora_rank``.

    Rows are valid until the next call: no prefetching. Raises ConfigError for an adapter of a higher rank.
    """

    def __init__(
        self,
        layout: ArenaLayout,
        max_lora_rank: int,
        record: Callable[[AdapterDigest], AdapterRecord],
        host_rows: Callable[[AdapterDigest], tuple[AdapterSignature, RowFile | MemoryRows]],
    ) -> None:
        self._layout = layout
        self._max_lora_rank = max_lora_rank
        self._record = record
        self._host_rows = host_rows
        self._padding: Callable[[AdapterSignature], _Padding] = lru_cache(maxsize=64)(self._pad)

    def record(self, digest: AdapterDigest) -> AdapterRecord:
        """The padded adapter's shape and size."""
        signature = self.padded(self._record(digest).signature)
        placement = place(self._layout, signature)
        return AdapterRecord(digest, signature, placement.num_pages, placement.size_bytes)

    def host_rows(self, digest: AdapterDigest) -> tuple[AdapterSignature, MemoryRows]:
        """Signature and rows of the padded adapter. Raises AdapterDamaged if its own cannot be read."""
        signature, rows = self._host_rows(digest)
        padding = self._padding(signature)
        rows.read(0, [padding.source])
        source, target = padding.source.reshape(-1), padding.image.reshape(-1)
        for start, to, count in padding.runs:
            target[to : to + count] = source[start : start + count]
        return padding.signature, MemoryRows(padding.image)

    def padded(self, signature: AdapterSignature) -> AdapterSignature:
        """``max_lora_rank`` where ``signature`` has any rank."""
        if signature.max_lora_rank > self._max_lora_rank:
            raise ConfigError(
                f"an adapter has rank {signature.max_lora_rank}; allowed: {self._max_lora_rank}, the rank of the slots"
            )
        return AdapterSignature(
            tuple(tuple(self._max_lora_rank if lora_rank else 0 for lora_rank in layer) for layer in signature.lora_ranks)
        )

    def _pad(self, signature: AdapterSignature) -> _Padding:
        padded = self.padded(signature)
        source, target = place(self._layout, signature), place(self._layout, padded)
        runs: list[tuple[int, int, int]] = []
        parts: tuple[Part, Part] = ("A", "B")
        for layer, lora_ranks in enumerate(signature.lora_ranks):
            for module, lora_rank in zip(MODULES, lora_ranks):
                for part in parts if lora_rank else ():
                    size = self._layout.row_bytes(source.row_width(module, part))
                    offsets = source.row_offsets(layer, module, part), target.row_offsets(layer, module, part)[:lora_rank]
                    for start, to in zip(*(column.tolist() for column in offsets)):
                        last = runs[-1] if runs else (0, 0, -1)
                        if (last[0] + last[2], last[1] + last[2]) == (start, to):
                            runs[-1] = (last[0], last[1], last[2] + size)
                        else:
                            runs.append((start, to, size))
        page_bytes = self._layout.page_bytes
        images = np.empty((source.num_pages, page_bytes), np.uint8), np.zeros((target.num_pages, page_bytes), np.uint8)
        return _Padding(padded, tuple(runs), *images)
