"""LoRA of the output head on the CPU, for all adapters of a step at once, through the row kernel of the layers' LoRA.

B of the head is cut into ranges of columns (``SideRows.first_column``); one call of the kernel adds one range. Legend: L rows
whose logits are wanted, H hidden, V vocabulary, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch

from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.kernels.lora_cpu import add_lora_rows, scratch_floats
from evenflow.serving.kernels.simd import element_of

_MODULE = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True)
class HeadPart:
    """One adapter's range of columns."""

    first_column: int
    width: int
    lines: np.ndarray
    """int64 [2 R]: lines of the rows of A, then of those of B."""
    logits_rows: np.ndarray
    """int64, ascending: its rows among those whose logits are wanted."""


class HeadLoRA:
    """Plans and adds ranges of columns. ``inputs``: H."""

    def __init__(self, storage: Storage, inputs: int) -> None:
        self._storage = storage
        self._inputs = inputs
        self._element = element_of(storage.layout.itemsize)
        self._num_threads = min(torch.get_num_threads(), numba.get_num_threads())
        self._calls: list[tuple[int, int, tuple[np.ndarray, ...], list[np.ndarray]]] = []
        self._scratch = np.zeros((0, 0), np.float32)
        self._most = (1, 1)

    def plan(self, parts: Sequence[HeadPart]) -> None:
        """What the next calls of ``add`` add."""
        self._calls = []
        if not parts:
            return
        self._most = max(part.width for part in parts), max(len(part.lines) // 2 for part in parts)
        floats = scratch_floats(self._inputs, *self._most) + 16
        if self._scratch.shape[1] < floats:
            self._scratch = np.empty((self._num_threads, floats), np.float32)
        ranges: dict[tuple[int, int], list[HeadPart]] = {}
        for part in parts:
            ranges.setdefault((part.first_column, part.width), []).append(part)
        for (first, width), some in ranges.items():
            table = np.zeros((len(some), 1, 1, 3), np.int32)
            for slot, part in enumerate(some):
                lora_rank = len(part.lines) // 2
                table[slot, 0, 0] = lora_rank, 0, lora_rank
            addresses = np.array([part.lines.ctypes.data for part in some], np.int64)
            counts = [len(part.logits_rows) for part in some]
            rows = np.concatenate([part.logits_rows for part in some]).astype(np.int64)
            slots = np.repeat(np.arange(len(some)), counts)
            cuts = len(rows) * np.arange(self._num_threads + 1) // self._num_threads
            self._calls.append((first, width, (addresses, table, rows, slots, cuts), [part.lines for part in some]))

    def add(self, hidden_LH: torch.Tensor, logits_LV: torch.Tensor) -> None:
        """logits_LV[l, columns] += B A hidden_LH[l] of the adapter of l, in place."""
        size = self._storage.layout.itemsize
        assert hidden_LH.stride(1) == logits_LV.stride(1) == 1
        for first, width, (addresses, table, rows, slots, cuts), _ in self._calls:
            add_lora_rows(
                self._element,
                self._num_threads,
                self._storage.address,
                hidden_LH.data_ptr(),
                hidden_LH.stride(0) * size,
                self._inputs,
                logits_LV.data_ptr(),
                logits_LV.stride(0) * size,
                0,
                _MODULE,
                np.array([first], np.int64),
                np.array([width], np.int64),
                addresses,
                table,
                rows,
                slots,
                cuts,
                *self._most,
                self._scratch.ctypes.data,
                self._scratch.strides[0],
            )


__all__ = ["HeadLoRA", "HeadPart"]
