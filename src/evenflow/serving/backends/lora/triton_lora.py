"""LoRA on CUDA through Triton: one batch of token rows with any adapters, whose factor rows are read where they lie.

On the CPU it runs under Triton's interpreter, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.devices.triton_device import TritonDevice, next_power_of_2, triton_device
from evenflow.serving.backends.lora.lora_lines import MOST_MODULES, line_tables
from evenflow.serving.backends.lora.lora_segments import Segments, cut, token_rows_by_adapter
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import SITES
from evenflow.serving.kernels.lora_triton import SEGMENT_FIELDS, expand, shrink
from evenflow.serving.memory.layout import LINE_BYTES

_PROGRAMS_PER_PROCESSOR = 8
"""Programs per streaming multiprocessor of a launch whose size must not depend on the batch (CUDA graphs)."""


@dataclass(frozen=True, slots=True)
class LoRABlocks:
    """How the kernels cut the work of one kind of segment."""

    rows: int
    """Token rows of a segment, at most."""
    lora_ranks: int
    """Factor rows that one product takes."""
    shrink_columns: int
    """Input columns that a step of shrink's loop takes."""
    expand_columns: int
    """Output columns that one program of expand computes."""
    split: int
    """Shrink cuts the input width into ranges of so many columns, each a program's work."""
    num_warps: int
    num_stages: int


def choose_blocks(device: TritonDevice, itemsize: int) -> tuple[LoRABlocks, LoRABlocks]:
    """(for sequences that decode, for sequences that compute a prompt)."""
    if device.is_interpreted:
        return LoRABlocks(16, 64, 512, 512, 512, 1, 1), LoRABlocks(256, 64, 512, 512, 512, 1, 1)
    if itemsize == 4:
        return LoRABlocks(16, 16, 128, 128, 1024, 4, 3), LoRABlocks(32, 16, 64, 128, 1024, 4, 2)
    return LoRABlocks(16, 16, 256, 256, 1024, 4, 4), LoRABlocks(64, 32, 128, 128, 1024, 8, 3)


@dataclass(frozen=True, slots=True)
class _Site:
    index: int
    inputs: int
    widths: tuple[int, int, int]
    """Output width of each module; 0 where the site has fewer than three modules."""


@dataclass(frozen=True, slots=True)
class _Work:
    """All segments of one kind at one site, as the kernels will read them: see ``kernels.lora_triton``."""

    blocks: LoRABlocks
    amounts: np.ndarray
    fields: np.ndarray
    num_shrink: int
    """Programs that have something to do."""
    num_expand: int


@dataclass(frozen=True, slots=True)
class _Launch:
    """A ``_Work`` on the device, for the step at hand."""

    blocks: LoRABlocks
    amounts: torch.Tensor
    segments: torch.Tensor
    num_shrink: int
    num_expand: int


class TritonLoRA:
    """LoRABackend for bf16 and fp32. Legend: see ``LoRABackend``.

    ``decode``, ``prompt``: sizes of the two kinds of segment; None: what suits the device.
    Raises ConfigError for another dtype or device.
    """

    def __init__(self, storage: Storage, decode: LoRABlocks | None = None, prompt: LoRABlocks | None = None) -> None:
        self._device = triton_device(storage.device, storage.dtype, shrink)
        self._storage = storage
        chosen = choose_blocks(self._device, storage.layout.itemsize)
        self._decode, self._prompt = decode or chosen[0], prompt or chosen[1]
        self._sites: dict[str, _Site] = {}
        for index, (name, modules) in enumerate(SITES.items()):
            widths = [storage.layout.shape.module_widths(module)[1] for module in modules]
            widths += [0] * (MOST_MODULES - len(widths))
            inputs = storage.layout.shape.module_widths(modules[0])[0]
            self._sites[name] = _Site(index, inputs, (widths[0], widths[1], widths[2]))
        self._tables: dict[int, torch.Tensor] = {}
        """By slot: the lines on the device, kept alive because kernels read them by address."""
        self._addresses = np.zeros((0, len(SITES)), np.int64)
        self._lora_ranks = np.zeros((0, len(SITES), MOST_MODULES + 1), np.int64)
        self._sums = torch.empty(0, dtype=torch.float32, device=storage.device)
        self._token_rows_of_step: tuple[bytes, bytes] | None = None
        """Adapter slots and row starts of the batch that ``_works`` was made for; None once a bind has made it invalid."""
        self._grouped_token_rows = np.zeros(0, np.int64)
        self._works: dict[str, list[_Work]] = {}
        self._launches: dict[str, list[_Launch]] = {}
        self._is_fixed = False

    def warm_up(self) -> None:
        """Compile for both kinds of segments, by running every site on a token row without an adapter."""
        dtype, device = self._storage.dtype, self._storage.device
        self._token_rows, self._is_fixed = torch.zeros(1, dtype=torch.int64, device=device), False
        amounts = torch.zeros(2, dtype=torch.int64, device=device)
        segments = torch.zeros(SEGMENT_FIELDS, dtype=torch.int64, device=device)
        for name, site in self._sites.items():
            self._launches = {name: [_Launch(b, amounts, segments, 1, 1) for b in (self._decode, self._prompt)]}
            x_TI = torch.empty((1, site.inputs), dtype=dtype, device=device)
            self.run(0, name, x_TI, torch.empty((1, sum(site.widths)), dtype=dtype, device=device))
        self._launches = {}

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """See ``LoRABackend.bind``."""
        if slot >= len(self._addresses):
            more = max(2 * len(self._addresses), slot + 1, 16) - len(self._addresses)
            self._addresses = np.concatenate([self._addresses, np.zeros((more, *self._addresses.shape[1:]), np.int64)])
            self._lora_ranks = np.concatenate([self._lora_ranks, np.zeros((more, *self._lora_ranks.shape[1:]), np.int64)])
        tables = line_tables(self._storage.layout, signature)
        lines = torch.from_numpy(tables.lines(pages))
        if self._storage.device.type == "cuda":
            lines = lines.pin_memory().to(self._storage.device, non_blocking=True)
        self._token_rows_of_step = None
        self._tables[slot] = lines
        self._addresses[slot] = lines.data_ptr() + 8 * tables.begins
        self._lora_ranks[slot] = tables.lora_ranks

    def plan(self, batch: Batch) -> None:
        """Group the step's token rows by adapter and list each site's segments; what the last step had in common is kept."""
        token_rows_of_step = batch.adapter_slots.tobytes(), batch.row_starts.tobytes()
        if self._token_rows_of_step != token_rows_of_step:
            self._group(batch.adapter_slots, batch.row_starts)
            self._token_rows_of_step = token_rows_of_step
        add, most = batch.staging.add, batch.num_rows if batch.is_fixed else None
        self._is_fixed = batch.is_fixed
        self._token_rows = add(self._grouped_token_rows, most)
        most = None if most is None else most * SEGMENT_FIELDS
        self._launches = {
            name: [_Launch(w.blocks, add(w.amounts), add(w.fields, most), w.num_shrink, w.num_expand) for w in works]
            for name, works in self._works.items()
        }

    def _group(self, slots: np.ndarray, row_starts: np.ndarray) -> None:
        decode = token_rows_by_adapter(slots, row_starts, decode=True)
        prompt = token_rows_by_adapter(slots, row_starts, decode=False)
        kinds = [(self._decode, cut(decode[1], 0, self._decode.rows))]
        if len(prompt[0]):
            kinds.append((self._prompt, cut(prompt[1], len(decode[0]), self._prompt.rows)))
        self._grouped_token_rows = np.concatenate([decode[0], prompt[0]])
        self._reserve_sums(kinds)
        self._works = {name: [self._write_down(site, *kind) for kind in kinds] for name, site in self._sites.items()}

    def _write_down(self, site: _Site, blocks: LoRABlocks, segments: Segments) -> _Work:
        lora_ranks = self._lora_ranks[segments.slot, site.index]
        used = lora_ranks[:, -1] > 0
        lora_ranks, count = lora_ranks[used], segments.count[used]
        num_splits = -(-site.inputs // blocks.split)
        sums = num_splits * count * lora_ranks[:, -1]
        fields = np.empty((len(count), SEGMENT_FIELDS), np.int64)
        fields[:, 0], fields[:, 1] = segments.first[used], count
        fields[:, 2] = self._addresses[segments.slot[used], site.index]
        fields[:, 3] = self._sums.data_ptr() + 4 * (np.cumsum(sums) - sums)
        fields[:, 4:] = lora_ranks
        num_blocks = -(-int(lora_ranks[:, -1].max(initial=0)) // blocks.lora_ranks)
        columns = sum(-(-width // blocks.expand_columns) for width in site.widths)
        return _Work(
            blocks,
            np.array([len(count), num_blocks], np.int64),
            fields.reshape(-1),
            num_shrink=len(count) * num_blocks * num_splits,
            num_expand=len(count) * columns,
        )

    def _reserve_sums(self, kinds: list[tuple[LoRABlocks, Segments]]) -> None:
        """Make room for the sums that shrink leaves for expand, for the site that leaves most; sites use the room in turn.

        Kernels find the sums by their address, which is written down anew after this. The tensor may therefore move.
        """
        needed = 0
        for blocks, segments in kinds:
            for site in self._sites.values():
                lora_ranks = self._lora_ranks[segments.slot, site.index, -1]
                needed = max(needed, -(-site.inputs // blocks.split) * int((segments.count * lora_ranks).sum()))
        if needed > len(self._sums):
            self._sums = torch.empty(next_power_of_2(needed), dtype=torch.float32, device=self._storage.device)

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See ``LoRABackend.run``."""
        assert x_TI.stride(1) == 1
        assert y_TO.stride(1) == 1
        for launch in self._launches.get(site, ()):
            if launch.num_shrink or self._is_fixed:
                self._launch(layer, self._sites[site], launch, x_TI, y_TO)

    def _launch(self, layer: int, site: _Site, launch: _Launch, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        blocks = launch.blocks
        fixed = _PROGRAMS_PER_PROCESSOR * self._device.num_processors if self._is_fixed else None
        unit = LINE_BYTES // self._storage.layout.itemsize
        num_splits = -(-site.inputs // blocks.split)
        shrink[(fixed or launch.num_shrink,)](
            x_TI,
            self._storage.elements,
            launch.amounts,
            launch.segments,
            self._token_rows,
            layer,
            x_TI.stride(0),
            WIDTH=site.inputs,
            UNIT=unit,
            SPLIT=blocks.split,
            SPLITS=num_splits,
            ROWS=blocks.rows,
            RANKS=blocks.lora_ranks,
            COLUMNS=blocks.shrink_columns,
            DOT=self._device.product,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )
        expand[(fixed or launch.num_expand,)](
            y_TO,
            self._storage.elements,
            launch.amounts,
            launch.segments,
            self._token_rows,
            layer,
            y_TO.stride(0),
            WIDTH_0=site.widths[0],
            WIDTH_1=site.widths[1],
            WIDTH_2=site.widths[2],
            UNIT=unit,
            SPLITS=num_splits,
            ROWS=blocks.rows,
            RANKS=blocks.lora_ranks,
            COLUMNS=blocks.expand_columns,
            DOT=self._device.product,
            num_warps=blocks.num_warps,
            num_stages=1,  # a loop of one round as a rule; pipelined, every partial sum would go through shared memory
        )


__all__ = ["LoRABlocks", "TritonLoRA", "choose_blocks"]
