"""LoRA on the CPU, over factor rows where they lie in the arena.

A numba kernel takes token rows one by one; where an adapter has many token rows, matrix products take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.rank_space import RankSpace
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.kernels.lora_cpu import add_lora_rows, scratch_floats
from evenflow.serving.kernels.lora_split_cpu import expand_lora_rows, shrink_lora_rows
from evenflow.serving.kernels.simd import element_of
from evenflow.serving.memory.layout import LINE_BYTES, place

PRODUCT_MACS = 32_000_000
"""Multiply-adds of one adapter at one site (token rows x LoRA rank x (input + output width)), from which on matrix products
take the place of the row kernel."""

PRODUCT_MACS_WITH_AMX = 8_000_000
"""What ``PRODUCT_MACS`` is for bf16 on a processor with matrix units, where torch's products are faster."""

ONE_THREAD_MACS = 600_000
"""Up to this many multiply-adds of one site, if they read no more than ``ONE_THREAD_BYTES``, are computed by one thread.
Other threads sleep between kernels, and waking one takes longer than the work that it would take over (50 us;
docs/lab/2026-11-22-kernels.md)."""

ONE_THREAD_BYTES = 1 << 20
"""Bytes of factor rows (of one site, of all adapters in the step) that one thread reads while another would wake up."""


def min_product_macs(dtype: torch.dtype) -> int:
    """``PRODUCT_MACS_WITH_AMX`` for bf16 on a processor with matrix units, else ``PRODUCT_MACS``."""
    has_amx = torch.cpu.get_capabilities().get("amx_bf16", False) if hasattr(torch.cpu, "get_capabilities") else False
    return PRODUCT_MACS_WITH_AMX if has_amx and dtype == torch.bfloat16 else PRODUCT_MACS


@dataclass(frozen=True, slots=True)
class _Site:
    """One site of the model in the arrays that the kernels read. Widths are in elements."""

    inputs: int
    modules: np.ndarray
    """int64 [m]: the site's modules, as numbers in MODULES."""
    columns: np.ndarray
    """int64 [m]: first output column of each module."""
    widths: np.ndarray
    """int64 [m]: output width of each module."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One step's work at one site, the same for all layers."""

    token_rows: np.ndarray
    """int64 [n], sorted by slot: the token rows that the row kernel computes."""
    slots: np.ndarray
    """int64 [n]: the slot of each of these token rows."""
    cuts: np.ndarray
    """int64 [num_threads + 1]: thread i computes the entries of ``token_rows`` from ``cuts[i]`` up to ``cuts[i + 1]``."""
    segments: tuple[tuple[int, int, int], ...]
    """(slot, first token row, end token row), sorted by slot: runs of token rows that matrix products compute."""
    is_small: bool = False
    """True: so little work that one thread computes all token rows."""


class CPULoRA:
    """SplitLoRABackend for bf16 and fp32 on the CPU. Legend: see ``LoRABackend``.

    ``num_threads``: into how many parts the row kernel's work is cut; None: as many as both torch and numba use.
    ``product_macs``: from how many multiply-adds on matrix products are used; None: what ``min_product_macs`` says.
    Raises ConfigError for a storage of another dtype.
    """

    def __init__(self, storage: Storage, num_threads: int | None = None, product_macs: int | None = None) -> None:
        if storage.dtype not in (torch.bfloat16, torch.float32):
            raise ConfigError(f"{storage.dtype}; allowed: bf16 or fp32")
        layout, num_layers = storage.layout, storage.layout.shape.num_layers
        self._storage = storage
        self._product_macs = min_product_macs(storage.dtype) if product_macs is None else product_macs
        self._element = element_of(storage.layout.itemsize)
        self._num_threads = num_threads or min(torch.get_num_threads(), numba.get_num_threads())
        self._sites: dict[str, _Site] = {}
        for name, modules in SITES.items():
            widths = np.array([layout.row_width(module, "B") for module in modules], np.int64)
            self._sites[name] = _Site(
                inputs=layout.row_width(modules[0], "A"),
                modules=np.array([MODULES.index(module) for module in modules], np.int64),
                columns=np.cumsum(widths) - widths,
                widths=widths,
            )
        self._max_inputs = max(site.inputs for site in self._sites.values())
        self._max_outputs = int(max(site.widths.max() for site in self._sites.values()))
        self._max_site_rank = 0
        self._lines: dict[int, np.ndarray] = {}
        # What the kernels read, indexed by slot. bind() makes these arrays longer when a higher slot comes.
        self._lines_of_slot = np.zeros(0, np.int64)
        # int32 [slots, L, M, 3]: LoRA rank, number of the first A row, number of the first B row. Side by side, because the
        # kernel reads all three together, and the entries of an adapter are seldom in the processor's cache.
        self._table = np.zeros((0, num_layers, len(MODULES), 3), np.int32)
        self._a_rows = np.zeros((0, num_layers, len(MODULES)), np.int32)
        # int64 [slots, sites]: multiply-adds that one token row needs, in the layer that needs most.
        self._macs = np.zeros((0, len(SITES)), np.int64)
        self._grow(16)
        self._reserve_scratch(64)
        self._work: dict[str, _Work] = {}
        self._planned: tuple[np.ndarray, np.ndarray] | None = None
        """Adapter slots and row starts of the batch that ``_work`` was made for; None once a bind has made it invalid."""

    def warm_up(self) -> None:
        """Compile the kernels, or load what was compiled before, by running each on no token rows."""
        none = np.zeros(0, np.int64)
        work = _Work(none, none, np.zeros(self._num_threads + 1, np.int64), ())
        x_TI = torch.empty((0, self._sites["o"].inputs), dtype=self._storage.dtype)
        self._run_token_rows(0, self._sites["o"], work, x_TI, torch.empty_like(x_TI))
        shard = self._storage.layout.shard
        if shard is not None and shard.exchanged:
            space = RankSpace("o", self._storage.layout.shape.num_layers, shard.world_size)
            self._shrink_token_rows(0, self._sites["o"], work, x_TI, space, torch.empty(0))
            self._expand_token_rows(0, self._sites["o"], work, torch.empty(1, 0), torch.empty_like(x_TI), space)

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """See ``LoRABackend.bind``."""
        if slot >= len(self._lines_of_slot):
            self._grow(max(2 * len(self._lines_of_slot), slot + 1))
        self._planned = None
        placement = place(self._storage.layout, signature)
        lines = placement.lines(pages)
        self._lines[slot] = lines
        self._lines_of_slot[slot] = lines.ctypes.data
        self._a_rows[slot] = placement.a_rows
        self._table[slot] = np.stack([placement.lora_ranks, placement.first_a, placement.first_b], axis=-1)
        for index, site in enumerate(self._sites.values()):
            lora_ranks = placement.lora_ranks[:, site.modules].astype(np.int64)
            macs = placement.a_rows[:, site.modules] * site.inputs + lora_ranks * site.widths
            self._macs[slot, index] = macs.sum(axis=1).max()
            self._reserve_scratch(int(lora_ranks.sum(axis=1).max()))

    def _grow(self, num_slots: int) -> None:
        for name in ("_lines_of_slot", "_table", "_a_rows", "_macs"):
            old = getattr(self, name)
            new = np.zeros((num_slots, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def _reserve_scratch(self, site_rank: int) -> None:
        """Make room for adapters whose modules of one site have ``site_rank`` rows of A together."""
        if site_rank > self._max_site_rank:
            self._max_site_rank = site_rank
            floats = scratch_floats(self._max_inputs, self._max_outputs, site_rank)
            # 16 floats are a cache line: with one to spare, two threads never write to the same cache line.
            self._scratch = np.empty((self._num_threads, floats + 16), np.float32)

    def plan(self, batch: Batch) -> None:
        """Decide for each site which token rows the kernel computes and which matrix products compute.

        The kernel's token rows are sorted by adapter and cut so that all threads have the same number of multiply-adds.
        """
        if self._planned is not None and all(
            np.array_equal(old, new) for old, new in zip(self._planned, (batch.adapter_slots, batch.row_starts))
        ):
            return  # The last plan still holds: most steps that only decode have the same sequences as the step before.
        self._planned = batch.adapter_slots, batch.row_starts
        self._work = {}
        bearing = np.flatnonzero(batch.adapter_slots >= 0)
        if not len(bearing):
            return
        num_token_rows = np.diff(batch.row_starts)
        bearing = bearing[np.argsort(batch.adapter_slots[bearing], kind="stable")]
        slots = batch.adapter_slots[bearing].astype(np.int64)
        macs = self._macs[slots]
        has_products = macs * num_token_rows[bearing, None] >= self._product_macs
        for index, name in enumerate(self._sites):
            wanted = (macs[:, index] > 0) & ~has_products[:, index]
            sequences = bearing[wanted]
            counts = num_token_rows[sequences]
            ends = np.cumsum(counts)
            total = int(ends[-1]) if len(ends) else 0
            token_rows = np.arange(total) + np.repeat(batch.row_starts[sequences] - (ends - counts), counts)
            work = np.cumsum(np.repeat(macs[wanted, index], counts))
            cuts = np.zeros(self._num_threads + 1, np.int64)
            if total:
                shares = work[-1] * np.arange(self._num_threads + 1) / self._num_threads
                cuts = np.searchsorted(work - 0.5 * np.repeat(macs[wanted, index], counts), shares)
                cuts[-1] = total
            segments = tuple(
                (int(slot), int(batch.row_starts[s]), int(batch.row_starts[s + 1]))
                for slot, s in zip(slots[has_products[:, index]], bearing[has_products[:, index]])
            )
            if total or segments:
                factor_bytes = self._macs[np.unique(slots[wanted]), index].sum() * self._storage.layout.itemsize
                is_small = bool(total and work[-1] <= ONE_THREAD_MACS and factor_bytes <= ONE_THREAD_BYTES)
                self._work[name] = _Work(token_rows, np.repeat(slots[wanted], counts), cuts, segments, is_small)

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See ``LoRABackend.run``."""
        work = self._work.get(site)
        if work is None:
            return
        assert x_TI.stride(1) == 1
        assert y_TO.stride(1) == 1
        if len(work.token_rows):
            self._run_token_rows(layer, self._sites[site], work, x_TI, y_TO)
        if work.segments:
            self._run_products(layer, self._sites[site], work, x_TI, y_TO)

    def _run_token_rows(self, layer: int, site: _Site, work: _Work, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        itemsize = self._storage.layout.itemsize
        num_threads = numba.get_num_threads()
        if work.is_small:
            numba.set_num_threads(1)  # This thread then computes the parts of all threads, one after another.
        add_lora_rows(
            self._element,
            self._num_threads,
            self._storage.address,
            x_TI.data_ptr(),
            x_TI.stride(0) * itemsize,
            site.inputs,
            y_TO.data_ptr(),
            y_TO.stride(0) * itemsize,
            layer,
            site.modules,
            site.columns,
            site.widths,
            self._lines_of_slot,
            self._table,
            work.token_rows,
            work.slots,
            work.cuts,
            self._max_outputs,
            self._max_site_rank,
            self._scratch.ctypes.data,
            self._scratch.strides[0],
        )
        if work.is_small:
            numba.set_num_threads(num_threads)

    def _run_products(self, layer: int, site: _Site, work: _Work, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """For each run of token rows: one product with the A of all modules of the site, then one with the B of each module."""
        found_slot, a_SI = -1, x_TI
        of_module: list[tuple[slice, slice, torch.Tensor]] = []
        for slot, first, end in work.segments:
            if slot != found_slot:
                found_slot, lines, total, first_a, of_module = slot, self._lines[slot], 0, 0, []
                for module, column, width in zip(site.modules, site.columns, site.widths):
                    lora_rank, a, b = (int(n) for n in self._table[slot, layer, module])
                    if lora_rank:
                        first_a = first_a if total else a
                        b_RO = self._factor_rows(lines[b : b + lora_rank], int(width))
                        of_module.append((slice(total, total + lora_rank), slice(int(column), int(column + width)), b_RO))
                        total += lora_rank
                # In the page image, the A rows of a site's modules follow one another: together they are one matrix.
                a_SI = self._factor_rows(lines[first_a : first_a + total], site.inputs)
            s_TS = x_TI[first:end] @ a_SI.T
            for lora_ranks, columns, b_RO in of_module:
                y_TO[first:end, columns].addmm_(s_TS[:, lora_ranks], b_RO)

    def _matrices(self, layer: int, site: _Site, slot: int) -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
        """(output columns, A [A rows held here, in], B [lora_rank, out]) of each module of the site that the adapter has."""
        lines, found = self._lines[slot], []
        for module, column, width in zip(site.modules, site.columns, site.widths):
            lora_rank, a, b = (int(n) for n in self._table[slot, layer, module])
            held = int(self._a_rows[slot, layer, module])
            if lora_rank:
                a_RI = self._factor_rows(lines[a : a + held], site.inputs)
                b_RO = self._factor_rows(lines[b : b + lora_rank], int(width))
                found.append((slice(int(column), int(column + width)), a_RI, b_RO))
        return found

    def _factor_rows(self, lines: np.ndarray, width: int) -> torch.Tensor:
        """Factor rows as a matrix [len(lines), width]: a view of the arena if they follow one another there, else a copy."""
        layout, elements = self._storage.layout, self._storage.elements
        apart = layout.row_bytes(width) // LINE_BYTES
        if not len(lines) or (np.diff(lines) != apart).any():
            return self._storage.factor_rows(torch.from_numpy(lines), width)
        per_line = LINE_BYTES // layout.itemsize
        start = elements.storage_offset() + int(lines[0]) * per_line
        return elements.as_strided((len(lines), width), (apart * per_line, 1), start)

    def shrink(self, layer: int, site: str, x_TI: torch.Tensor, space: RankSpace) -> torch.Tensor:
        """See ``SplitLoRABackend.shrink``."""
        message_M = torch.zeros(space.size(layer))
        work = self._work.get(site)
        if work is None:
            return message_M
        assert x_TI.stride(1) == 1
        if len(work.token_rows):
            self._shrink_token_rows(layer, self._sites[site], work, x_TI, space, message_M)
        for slot, first, end in work.segments:
            for (_, a_RI, _), field in zip(self._matrices(layer, self._sites[site], slot), self._fields(layer, slot, space)):
                target_TW = _token_rows_of(message_M, space, layer, first, end)
                target_TW[:, field.start : field.start + len(a_RI)] = x_TI[first:end] @ a_RI.T
        return message_M

    def expand(self, layer: int, site: str, parts_PM: torch.Tensor, y_TO: torch.Tensor, space: RankSpace) -> None:
        """See ``SplitLoRABackend.expand``."""
        work = self._work.get(site)
        if work is None:
            return
        assert y_TO.stride(1) == 1
        if len(work.token_rows):
            self._expand_token_rows(layer, self._sites[site], work, parts_PM, y_TO, space)
        for slot, first, end in work.segments:
            for (columns, _, b_RO), field in zip(
                self._matrices(layer, self._sites[site], slot), self._fields(layer, slot, space)
            ):
                parts = [_token_rows_of(part_M, space, layer, first, end)[:, field] for part_M in parts_PM]
                s_TR = torch.cat(parts, dim=1)[:, : len(b_RO)].to(y_TO.dtype)
                y_TO[first:end, columns].addmm_(s_TR, b_RO)

    def _fields(self, layer: int, slot: int, space: RankSpace) -> list[slice]:
        """The field of each module that the adapter has, as a range of floats inside one token row's part of the message."""
        fields = space.fields[slot, layer]
        ends = np.cumsum(fields)
        return [slice(int(end - field), int(end)) for field, end in zip(fields, ends) if field]

    def _shrink_token_rows(
        self, layer: int, site: _Site, work: _Work, x_TI: torch.Tensor, space: RankSpace, message_M: torch.Tensor
    ) -> None:
        shrink_lora_rows(
            self._element,
            self._num_threads,
            self._storage.address,
            x_TI.data_ptr(),
            x_TI.stride(0) * self._storage.layout.itemsize,
            site.inputs,
            layer,
            site.modules,
            self._lines_of_slot,
            self._table,
            self._a_rows,
            space.fields,
            space.offsets,
            work.token_rows,
            work.slots,
            work.cuts,
            message_M.data_ptr(),
            self._max_outputs,
            self._max_site_rank,
            self._scratch.ctypes.data,
            self._scratch.strides[0],
        )

    def _expand_token_rows(
        self, layer: int, site: _Site, work: _Work, parts_PM: torch.Tensor, y_TO: torch.Tensor, space: RankSpace
    ) -> None:
        assert parts_PM.is_contiguous()
        expand_lora_rows(
            self._element,
            self._num_threads,
            self._storage.address,
            parts_PM.data_ptr(),
            4 * parts_PM.shape[1],
            len(parts_PM),
            y_TO.data_ptr(),
            y_TO.stride(0) * self._storage.layout.itemsize,
            layer,
            site.modules,
            site.columns,
            site.widths,
            self._lines_of_slot,
            self._table,
            space.fields,
            space.offsets,
            work.token_rows,
            work.slots,
            work.cuts,
            self._max_outputs,
            self._max_site_rank,
            self._scratch.ctypes.data,
            self._scratch.strides[0],
        )


def _token_rows_of(part_M: torch.Tensor, space: RankSpace, layer: int, first: int, end: int) -> torch.Tensor:
    """What a part of the message holds of token rows ``first`` to ``end``, which all have one adapter: a view, fp32 [rows, W].

    W is the number of floats that each of these token rows has in the part.
    """
    offsets = space.offsets[layer]
    return part_M[int(offsets[first]) : int(offsets[end])].view(end - first, -1)
