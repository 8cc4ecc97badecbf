"""All byte arithmetic of the arena: where K, V and factor rows lie inside equal pages.

One ``uint8`` tensor is cut into pages. A page holds ``page_tokens`` tokens of K and V of all layers,
``[page][layer][k|v][token][kv_head][head_dim]``, or rows of one adapter, packed next-fit in the order
the kernels read them. Drawn in docs/layouts.md; S-LoRA's Unified Paging, with rows of any width.

Everything here is numbers: it knows neither tensors nor who owns a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from evenflow.base.errors import ConfigError
from evenflow.serving.core.adapter import AdapterSignature, SideRows
from evenflow.serving.core.shape import MODULES, SITES, ModelShape
from evenflow.serving.core.shard import Shard

LINE_BYTES = 64
"""Rows start and end at multiples of this: one cache line, and a 16-byte aligned start for every kernel."""

BLOCK_TOKENS = 16
"""Kernels take a page as blocks of this many tokens, so ``page_tokens`` is BLOCK_TOKENS times a power of two."""

K, V = 0, 1
"""The two halves of a layer's part of a page."""

Part = Literal["A", "B"]

_ROWS_PER_PAGE = 4
"""A page takes at least this many of the widest rows, which bounds the lost tail of a page."""


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """Sizes and addresses of pages for one model shape and one element size.

    ``page_tokens`` is doubled until a page takes four of the widest rows (only one-layer test models
    need that). Under tensor parallelism ``shape`` is the shape of one rank's ``shard``: pages then hold less, by the
    same rule on every rank, and page numbers mean the same. Raises ConfigError if ``page_tokens`` is not 16 times a
    power of two.
    """

    shape: ModelShape
    itemsize: int
    """Bytes per element of K, V and factor rows: 2 for bf16, 4 for fp32."""
    page_tokens: int = BLOCK_TOKENS
    shard: Shard | None = None
    """None: the whole model."""

    @classmethod
    def of_shard(cls, shard: Shard, itemsize: int, page_tokens: int = BLOCK_TOKENS) -> ArenaLayout:
        """The layout of one rank's arena."""
        return cls(shard.shape, itemsize, page_tokens, shard)

    def __post_init__(self) -> None:
        assert self.shard is None or self.shard.shape == self.shape
        blocks, rest = divmod(self.page_tokens, BLOCK_TOKENS)
        if rest or blocks < 1 or blocks & (blocks - 1):
            raise ConfigError(f"page_tokens is {self.page_tokens}; allowed: {BLOCK_TOKENS} times a power of two")
        widths = [width for module in MODULES for width in self.shape.module_widths(module)]
        if self.shape.experts is not None:
            widths += [self.shape.experts.width, self.shape.experts.num_experts]
        widest = max(self.row_bytes(width) for width in widths)
        while self.page_bytes < _ROWS_PER_PAGE * widest:
            object.__setattr__(self, "page_tokens", 2 * self.page_tokens)

    @property
    def token_bytes(self) -> int:
        """K and V of one token, all layers."""
        return 2 * self.shape.num_layers * self.shape.kv_width * self.itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of a page: a multiple of LINE_BYTES and of ``token_bytes``, so that a page has no padding of its own."""
        return self.page_tokens * self.token_bytes

    @property
    def lines_per_page(self) -> int:
        """Size of a page in 64-byte lines."""
        return self.page_bytes // LINE_BYTES

    @property
    def kv_rows_per_page(self) -> int:
        """Rows of ``kv_width`` elements in a page: the arena is also a matrix of such rows."""
        return self.page_tokens * 2 * self.shape.num_layers

    @property
    def layer_bytes(self) -> int:
        """Bytes from one layer's K to the next layer's K inside a page."""
        return 2 * self.half_bytes

    @property
    def half_bytes(self) -> int:
        """Bytes of the K (or the V) of one layer inside a page."""
        return self.page_tokens * self.shape.kv_width * self.itemsize

    def kv_row(self, page: Any, layer: Any, k_or_v: Any, slot: Any) -> Any:
        """Index of a token's K or V in the arena as a matrix of ``kv_width`` wide rows: ints or arrays of ints, broadcast."""
        return ((page * self.shape.num_layers + layer) * 2 + k_or_v) * self.page_tokens + slot

    def kv_offset(self, layer: int, k_or_v: int) -> int:
        """Byte offset inside a page of the first token's K or V of ``layer``."""
        return layer * self.layer_bytes + k_or_v * self.half_bytes

    def row_bytes(self, width: int) -> int:
        """Bytes that a factor row of ``width`` elements takes: rounded up to whole lines, filled up with zeros."""
        return -(-width * self.itemsize // LINE_BYTES) * LINE_BYTES

    @property
    def whole_shape(self) -> ModelShape:
        """The model's shape, of which ``shape`` is this rank's part."""
        return self.shape if self.shard is None else self.shard.whole

    def held(self, module: str, part: Part, lora_rank: int) -> tuple[slice, slice]:
        """(rows, columns) of the whole A [R, I] or B transposed [R, O] of ``module`` that lie in this arena."""
        if self.shard is None:
            return slice(0, lora_rank), slice(0, self.shape.module_widths(module)[part == "B"])
        rows = self.shard.a_rows(module, lora_rank) if part == "A" else range(lora_rank)
        columns = self.shard.inputs(module) if part == "A" else self.shard.b_columns(module)
        return slice(rows.start, rows.stop), slice(columns.start, columns.stop)

    def row_width(self, module: str, part: Part) -> int:
        """Elements in an A row or a B row of ``module``, without the pad."""
        columns = self.held(module, part, 1)[1]
        return columns.stop - columns.start

    def row_width_of_output(self, module: str) -> int:
        """Output columns of ``module`` that this rank computes, as partial sums or alone."""
        return self.shape.module_widths(module)[1] if self.shard is None else len(self.shard.outputs(module))

    def held_columns(self, rows: SideRows) -> slice:
        """Which elements of whole side rows lie in this arena."""
        if self.shard is None:
            return slice(0, rows.width)
        if rows.kind in ("expert_a", "expert_b") and (rows.kind == "expert_a") == (rows.module == "down"):
            part = rows.width // self.shard.world_size  # of the experts' intermediate width
            return slice(self.shard.rank * part, (self.shard.rank + 1) * part)
        if not rows.is_of_linear:
            return slice(0, rows.width)
        outputs = self.shard.outputs(rows.module)
        return slice(outputs.start, outputs.stop)

    def side_width(self, rows: SideRows) -> int:
        """Elements of a side row in this arena, without the pad."""
        columns = self.held_columns(rows)
        return columns.stop - columns.start

    def num_pages_for_tokens(self, num_tokens: int) -> int:
        """Pages that hold the KV of ``num_tokens`` tokens of one request."""
        return -(-num_tokens // self.page_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class AdapterPlacement:
    """Where each row of an adapter lies inside the adapter's own pages. Shared by all adapters of one signature.

    Rows are numbered in packing order: per layer, per site, the A rows of the site's modules, then
    their B rows (B transposed: one row per rank, as wide as the output). Legend: R rows,
    L layers, M = len(MODULES). Page ordinals count the adapter's own pages from 0.
    """

    layout: ArenaLayout
    signature: AdapterSignature
    num_pages: int
    row_pages: np.ndarray
    """int64 [R]: which of the adapter's pages holds the row, counted from 0."""
    row_lines: np.ndarray
    """int64 [R]: line (byte offset / 64) of the row inside its page."""
    lora_ranks: np.ndarray
    """int32 [L, M]: LoRA rank, which is the number of B rows; 0 where the module is not adapted."""
    a_rows: np.ndarray
    """int32 [L, M]: number of A rows: the LoRA rank, or this rank's share of it."""
    first_a: np.ndarray
    """int32 [L, M]: number of the module's first A row; its ``a_rows`` rows are consecutive. 0 where it has none."""
    first_b: np.ndarray
    """int32 [L, M]: the same for B."""
    first_side: tuple[int, ...] = ()
    """Number of the first row of each of the signature's side rows."""

    @property
    def num_rows(self) -> int:
        """All rows: A, B and side rows."""
        return len(self.row_pages)

    def lines(self, pages: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 [R]: arena line (byte offset / 64) of every row, when ordinal i lies in page ``pages[i]``."""
        if len(pages) != self.num_pages:
            raise ValueError(f"{len(pages)} pages given for an adapter of {self.num_pages}")
        return np.asarray(pages, np.int64)[self.row_pages] * self.layout.lines_per_page + self.row_lines

    def row_offsets(self, layer: int, module: str, part: Part) -> np.ndarray:
        """int64 [rows]: byte offsets of a module's A or B rows in the page-form image [num_pages, page_bytes]."""
        index = MODULES.index(module)
        first, count = (self.first_a, self.a_rows) if part == "A" else (self.first_b, self.lora_ranks)
        rows = slice(int(first[layer, index]), int(first[layer, index]) + int(count[layer, index]))
        return self.row_pages[rows] * self.layout.page_bytes + self.row_lines[rows] * LINE_BYTES

    def side_slice(self, index: int) -> slice:
        """Numbers of the rows of the signature's side rows ``index``."""
        return slice(self.first_side[index], self.first_side[index] + self.signature.side[index].count)

    def side_offsets(self, index: int) -> np.ndarray:
        """int64 [rows]: byte offsets of the signature's side rows ``index`` in the page-form image [num_pages, page_bytes]."""
        rows = self.side_slice(index)
        return self.row_pages[rows] * self.layout.page_bytes + self.row_lines[rows] * LINE_BYTES

    def row_width(self, module: str, part: Part) -> int:
        """Elements in an A row (input width) or a B row (output width) of ``module``, without the pad."""
        return self.layout.row_width(module, part)

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows, each filled up to whole lines; without what is left over at the ends of pages."""
        layout = self.layout
        counts: dict[Part, np.ndarray] = {"A": self.a_rows, "B": self.lora_ranks}
        of_side = sum(rows.count * layout.row_bytes(layout.side_width(rows)) for rows in self.signature.side)
        return of_side + sum(
            int(count[:, index].sum()) * layout.row_bytes(layout.row_width(module, part))
            for index, module in enumerate(MODULES)
            for part, count in counts.items()
        )


@lru_cache(maxsize=1024)
def place(layout: ArenaLayout, signature: AdapterSignature) -> AdapterPlacement:
    """Pack an adapter's rows next-fit in reading order.

    Best-fit would save 0-3 % of the pages and break the order, which decode reads 2.3x faster.
    Every rank takes as many pages as the rank that needs most, so that page numbers are the same on all.
    Raises ValueError if the signature does not have the layout's number of layers and modules.
    """
    placement = _pack(layout, signature)
    if layout.shard is None:
        return placement
    everyone = (replace(layout, shard=layout.shard.of_rank(rank)) for rank in range(layout.shard.world_size))
    return replace(placement, num_pages=max(_pack(one, signature).num_pages for one in everyone))


@lru_cache(maxsize=1024)
def _pack(layout: ArenaLayout, signature: AdapterSignature) -> AdapterPlacement:
    lora_ranks = np.asarray(signature.lora_ranks, np.int32)
    if lora_ranks.shape != (layout.shape.num_layers, len(MODULES)) or (lora_ranks < 0).any():
        raise ValueError(
            f"lora_ranks has shape {lora_ranks.shape}; allowed: {(layout.shape.num_layers, len(MODULES))}, 0 or more"
        )
    counts: dict[Part, np.ndarray] = {
        "A": lora_ranks if layout.shard is None else _a_rows(layout.shard, lora_ranks),
        "B": lora_ranks,
    }
    lines_of: dict[tuple[str, Part], int] = {
        (module, part): layout.row_bytes(layout.row_width(module, part)) // LINE_BYTES for module in MODULES for part in counts
    }
    first = {"A": np.zeros_like(lora_ranks), "B": np.zeros_like(lora_ranks)}
    packing = _Packing(layout.lines_per_page)
    for layer in range(layout.shape.num_layers):
        for modules in SITES.values():
            for part in counts:
                for module in modules:
                    index = MODULES.index(module)
                    count = int(counts[part][layer, index])
                    if count:
                        first[part][layer, index] = packing.add(count, lines_of[module, part])
    first_side = [
        packing.add(rows.count, layout.row_bytes(layout.side_width(rows)) // LINE_BYTES, True) for rows in signature.side
    ]
    return AdapterPlacement(
        layout=layout,
        signature=signature,
        num_pages=packing.num_pages,
        row_pages=packing.row_pages,
        row_lines=packing.row_lines,
        lora_ranks=lora_ranks,
        a_rows=counts["A"],
        first_a=first["A"],
        first_b=first["B"],
        first_side=tuple(first_side),
    )


class _Packing:
    """Rows one after another into pages of ``lines_per_page`` lines: a row that does not fit any more begins the next page."""

    def __init__(self, lines_per_page: int) -> None:
        self._lines_per_page = lines_per_page
        self._free = 0
        self._num_rows = 0
        self._pages: list[np.ndarray] = []
        self._lines: list[np.ndarray] = []
        self.num_pages = 0

    def add(self, count: int, row_lines: int, is_matrix: bool = False) -> int:
        """Place ``count`` rows of ``row_lines`` lines; returns the number of the first.

        A matrix that fills a page or more begins a page of its own, so that as few runs of rows as possible make it up.
        """
        assert row_lines <= self._lines_per_page, "a row is wider than a page"
        number, left = self._num_rows, count
        self._num_rows += count
        if is_matrix and count * row_lines > self._lines_per_page:
            self._free = 0
        while left:
            if self._free < row_lines:
                self.num_pages, self._free = self.num_pages + 1, self._lines_per_page
            fits = min(left, self._free // row_lines)
            start = self._lines_per_page - self._free
            self._pages.append(np.full(fits, self.num_pages - 1))
            self._lines.append(start + np.arange(fits) * row_lines)
            left, self._free = left - fits, self._free - fits * row_lines
        return number

    @property
    def row_pages(self) -> np.ndarray:
        return np.concatenate(self._pages or [np.zeros(0, np.int64)]).astype(np.int64)

    @property
    def row_lines(self) -> np.ndarray:
        return np.concatenate(self._lines or [np.zeros(0, np.int64)]).astype(np.int64)


def _a_rows(shard: Shard, lora_ranks: np.ndarray) -> np.ndarray:
    """int32 [L, M]: how many A rows the rank holds of adapters of these LoRA ranks."""
    held = lora_ranks.copy()
    for index, module in enumerate(MODULES):
        of_rank = {int(r): len(shard.a_rows(module, int(r))) for r in np.unique(lora_ranks[:, index])}
        held[:, index] = [of_rank[int(r)] for r in lora_ranks[:, index]]
    return held
