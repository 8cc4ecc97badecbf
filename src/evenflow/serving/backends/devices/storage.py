"""The one tensor: the arena's bytes on one device, and the views that kernels take of it.

It knows pages and bytes (from the layout), not who owns them: that is the Arena's.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

import numpy as np
import torch

from evenflow.base.errors import ConfigError
from evenflow.serving.memory.layout import LINE_BYTES, ArenaLayout


class Storage:
    """``num_pages`` pages of ``layout.page_bytes`` bytes, 64-byte aligned, zeroed once.

    Freed pages keep their bytes, so a reader may touch valid tokens and rows only. On the CPU the
    operating system commits memory at the first touch. Raises ConfigError if ``dtype`` does not have
    the layout's item size.
    """

    def __init__(self, layout: ArenaLayout, num_pages: int, dtype: torch.dtype, device: torch.device) -> None:
        if dtype.itemsize != layout.itemsize:
            raise ConfigError(f"{dtype} has {dtype.itemsize} bytes; the layout was made for {layout.itemsize}")
        self.layout = layout
        self.num_pages = num_pages
        self.dtype = dtype
        self.device = device
        size = num_pages * layout.page_bytes
        raw = _zeros(size + LINE_BYTES, device)
        shift = -raw.data_ptr() % LINE_BYTES
        self.bytes = raw[shift : shift + size]
        """uint8 [num_pages * page_bytes]"""
        self.elements = self.bytes.view(dtype)
        """The same in the model's dtype, flat."""
        self.kv_rows = self.elements.view(-1, layout.shape.kv_width)
        """[num_pages * kv_rows_per_page, kv_width]: rows are numbered by ``layout.kv_row``."""
        # torch moves an indexed uint8 tensor byte by byte (1.3 GB/s), the same memory as int64 at 9 GB/s.
        self._words = self.bytes.view(torch.int64).view(num_pages, layout.page_bytes // 8)

    @property
    def address(self) -> int:
        """Address of page 0."""
        return self.bytes.data_ptr()

    def factor_rows(self, lines: torch.Tensor, width: int) -> torch.Tensor:
        """Copy factor rows out of the arena: [len(lines), width], in the model's dtype.

        ``lines`` int64, on the device: line (byte offset / 64) of each factor row; ``width`` in elements.
        """
        per_line = LINE_BYTES // self.layout.itemsize
        count = (self.elements.numel() - width) // per_line + 1
        return self.elements.as_strided((count, width), (per_line, 1)).index_select(0, lines)

    def write_pages(self, pages: Sequence[int], image: torch.Tensor) -> None:
        """Copy a page-form image (uint8 [len(pages), page_bytes], any device) into ``pages``."""
        words = image.contiguous().view(torch.int64)
        if words.shape != (len(pages), self._words.shape[1]):
            raise ValueError(f"image of shape {tuple(image.shape)} for {len(pages)} pages of {self.layout.page_bytes} bytes")
        for first, last in _runs(pages):
            page = pages[first]
            self._words[page : page + last - first].copy_(words[first:last], non_blocking=True)

    def page_views(self, pages: Sequence[int]) -> list[np.ndarray]:
        """The bytes of ``pages`` themselves, in their order: uint8 [n, page_bytes] per run of neighbours. CPU only."""
        words = self._words.numpy().view(np.uint8)
        return [words[pages[first] : pages[first] + last - first] for first, last in _runs(pages)]

    def read_pages(self, pages: Sequence[int]) -> torch.Tensor:
        """A copy of the bytes of ``pages``: uint8 [len(pages), page_bytes]."""
        index = torch.as_tensor(list(pages), dtype=torch.int64, device=self.device)
        return self._words.index_select(0, index).view(torch.uint8)


def _zeros(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Zeroed bytes; on Linux in huge pages where the system grants them, since an arena is read at random places."""
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # This Linux kernel has no huge pages.
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _runs(pages: Sequence[int]) -> list[tuple[int, int]]:
    """Index ranges of ``pages`` whose page numbers follow one another: neighbours are one copy."""
    starts = [i for i, page in enumerate(pages) if i == 0 or page != pages[i - 1] + 1]
    return list(zip(starts, [*starts[1:], len(pages)]))
