"""Thousands of distinct adapters of random rows, as row files: the form in which a server keeps its adapters on disk.

No two adapters share bytes, so that caches and memory see what they would see with real ones; what the rows say is noise
of the published size. The files stay in the system's file cache, not in this process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from evenflow.base.errors import AdapterNotFound, ConfigError
from evenflow.base.memory_size import format_size
from evenflow.serving.adapters.row_file import RowFile, is_row_file, open_rows, write_rows
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.core.shape import MODULES
from evenflow.serving.memory.layout import ArenaLayout, place

_NOISE_ELEMENTS = 1 << 20


class AdapterPool:
    """Adapter i has rank ``lora_ranks[i % len(lora_ranks)]`` at each of ``targets``; its digest is ``str(i)``.

    ``folder`` keeps the files between runs; what it lacks is written now. Raises ConfigError if its disk has no room.
    """

    def __init__(
        self,
        folder: Path,
        layout: ArenaLayout,
        num_adapters: int,
        lora_ranks: Sequence[int],
        targets: Sequence[str],
        *,
        weight_range: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.layout = layout
        self._targets = tuple(targets)
        placements = []
        for lora_rank in lora_ranks:
            of_layer = tuple(lora_rank if module in targets else 0 for module in MODULES)
            placements.append(place(layout, AdapterSignature((of_layer,) * layout.shape.num_layers)))
        self._records = [
            AdapterRecord(AdapterDigest(str(i)), placement.signature, placement.num_pages, placement.size_bytes)
            for i, placement in zip(range(num_adapters), placements * (num_adapters // len(placements) + 1))
        ]
        facts = [asdict(layout.shape), layout.itemsize, layout.page_tokens, list(lora_ranks), list(targets), weight_range, seed]
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / f"adapters-{name}"
        self._files: dict[AdapterDigest, RowFile] = {}
        self._signatures = {placement.signature: placement.signature for placement in placements}
        self._write_missing(_noise(layout, weight_range, seed), seed)

    def record(self, digest: AdapterDigest) -> AdapterRecord:
        """Identity, shape and size. Raises AdapterNotFound."""
        number = int(digest)
        if not 0 <= number < len(self._records):
            raise AdapterNotFound(f"no adapter {digest}; there are {len(self._records)}")
        return self._records[number]

    def host_rows(self, digest: AdapterDigest) -> tuple[AdapterSignature, RowFile]:
        """Signature and row file."""
        file = self._files.get(digest)
        if file is None:
            file = self._files[digest] = open_rows(self._path(digest), self._signatures)
        return file.header.record.signature, file

    def image(self, digest: AdapterDigest) -> np.ndarray:
        """A copy of the rows in page form: uint8 [num_pages, page_bytes]."""
        image = np.empty((self.record(digest).num_pages, self.layout.page_bytes), np.uint8)
        self.host_rows(digest)[1].read(0, [image])
        return image

    @property
    def size_bytes(self) -> int:
        """Bytes of all images."""
        return sum(record.num_pages for record in self._records) * self.layout.page_bytes

    def touch(self) -> None:
        """Read everything once, so that it is in the system's file cache, if it fits."""
        for record in self._records:
            self.image(record.digest)

    def __len__(self) -> int:
        return len(self._records)

    def _path(self, digest: AdapterDigest) -> Path:
        return self.folder / f"{int(digest):06d}.rows"

    def _write_missing(self, noise: np.ndarray, seed: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        have = {name for name in os.listdir(self.folder) if name.endswith(".rows") and is_row_file(self.folder / name)}
        missing = [record for record in self._records if self._path(record.digest).name not in have]
        size = sum(record.num_pages for record in missing) * self.layout.page_bytes
        status = os.statvfs(self.folder)
        if status.f_bavail * status.f_frsize < 1.05 * size:
            raise ConfigError(f"{len(missing)} adapters take {format_size(size)}; {self.folder.parent} has no room for them")
        page_bytes = self.layout.page_bytes
        for record in missing:
            # Each page is cut from the noise at a place of its own.
            starts = np.random.default_rng([seed, int(record.digest)]).integers(
                0, (len(noise) - page_bytes) // 64 + 1, record.num_pages
            )
            image = np.stack([noise[64 * start : 64 * start + page_bytes] for start in starts.tolist()])
            write_rows(self._path(record.digest), record, self._targets, "benchmark", image)


def _noise(layout: ArenaLayout, weight_range: float, seed: int) -> np.ndarray:
    """uint8: uniform numbers in the serving dtype, a few pages long at least."""
    elements = max(_NOISE_ELEMENTS, 4 * layout.page_bytes // layout.itemsize)
    values = np.random.default_rng(seed).uniform(-weight_range, weight_range, elements).astype(np.float32)
    if layout.itemsize == 4:
        return values.view(np.uint8)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


__all__ = ["AdapterPool"]
