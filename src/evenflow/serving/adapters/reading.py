"""How an adapter folder becomes a row file: the seam between the store and whatever reads what strangers wrote.

``InProcessReading`` reads in the caller's process: for tests, tools and the reading process itself. A server reads in a
process of its own (``bounded_reading``), which may die of what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from evenflow.base.errors import AdapterRejected
from evenflow.serving.adapters.adapter_files import FileState
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.page_image import page_image
from evenflow.serving.adapters.peft_reader import BaseModel, PeftAdapter, read_adapter
from evenflow.serving.adapters.row_file import write_rows
from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.layout import ArenaLayout, place


class ReadAdapter(Protocol):
    """One adapter that has been read and checked, held until the ``with`` around it ends."""

    @property
    def digest(self) -> AdapterDigest: ...
    @property
    def num_bytes(self) -> int:
        """Of its page image."""
        ...

    @property
    def base_model(self) -> str:
        """What it says it was trained for."""
        ...

    @property
    def depends_on_base(self) -> bool:
        """True if the base model's weights went into it."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What it holds that was ignored."""
        ...

    @property
    def states(self) -> list[FileState]:
        """Of config and weights as they were read."""
        ...

    def write(self, path: Path, layout: str) -> None:
        """Write its row file, wholly or not at all. ``layout``: its fingerprint.

        Raises OSError, AdapterRejected if a weight exceeds the serving dtype, and AdapterUnavailable.
        """
        ...

    def __enter__(self) -> ReadAdapter: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class AdapterReading(Protocol):
    """Reads folders. Any thread."""

    def read(self, path: Path, layout: ArenaLayout, max_lora_rank: int | None, allowed: Sequence[Path]) -> ReadAdapter:
        """Read and check the folder ``path``. ``allowed``: further folders where its files may lie.

        Raises AdapterNotFound, AdapterRejected with every reason found, AdapterUnavailable where the host is at fault.
        """
        ...

    def close(self) -> None:
        """Give back what reading takes. Idempotent."""
        ...


class AdapterInMemory:
    """``ReadAdapter`` in this process."""

    def __init__(self, adapter: PeftAdapter, layout: ArenaLayout, path: Path) -> None:
        self._adapter = adapter
        self._layout = layout
        self._path = path
        self.digest = adapter.digest
        self.num_bytes = place(layout, adapter.signature).num_pages * layout.page_bytes
        self.base_model = adapter.base_model or ""
        self.depends_on_base = adapter.depends_on_base
        self.warnings = adapter.warnings
        self.states = list(adapter.states)

    def write(self, path: Path, layout: str) -> None:
        """See ReadAdapter."""
        image, record = image_of(self._adapter, self._layout, self._path)
        write_rows(path, record, self._adapter.target_modules, layout, image)

    def __enter__(self) -> AdapterInMemory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """Nothing but memory is held."""


class InProcessReading:
    """``AdapterReading`` without bounds on time and memory, in the caller's process. ``roots``: see ``bounded_reading``.

    ``base``: for adapters that are worked out with the base model's weights.
    """

    def __init__(self, roots: Sequence[Path] = (), base: BaseWeights | None = None) -> None:
        self._roots = tuple(roots)
        self.base = base

    def read(self, path: Path, layout: ArenaLayout, max_lora_rank: int | None, allowed: Sequence[Path]) -> AdapterInMemory:
        """See AdapterReading."""
        adapter = read_adapter(path, model_of(layout, self.base), max_lora_rank, (*allowed, *self._roots))
        return AdapterInMemory(adapter, layout, path)

    def close(self) -> None:
        """Nothing is held."""


def model_of(layout: ArenaLayout, weights: BaseWeights | None) -> BaseModel:
    """What an adapter is read for: the model of this layout, and its weights if they can be had."""
    columns = layout.page_bytes // (4 * layout.itemsize) // 16 * 16
    asked = None if weights is None else weights.for_one_read()
    return BaseModel(layout.whole_shape, asked, max_columns=max(16, columns))


def image_of(adapter: PeftAdapter, layout: ArenaLayout, path: Path) -> tuple[np.ndarray, AdapterRecord]:
    """(page image, record) of an adapter read from ``path``. Raises AdapterRejected if a weight exceeds the dtype."""
    try:
        placement, image = page_image(adapter, layout)
    except OverflowError as error:
        raise AdapterRejected(str(path), [str(error)]) from None
    return image, AdapterRecord(adapter.digest, adapter.signature, placement.num_pages, placement.size_bytes)


__all__ = ["AdapterInMemory", "AdapterReading", "InProcessReading", "ReadAdapter", "image_of", "model_of"]
