"""Copies adapters' rows from the host into pages of the arena, now or beside what is being computed.

It decides nothing: the plan says which pages, the scheduler how many of them a step may take. A prefetch ends with
its step at the latest, so between two steps nothing is in flight and any page may change hands.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from evenflow.base.errors import AdapterDamaged
from evenflow.serving.backends.devices.storage import Storage


class HostRows(Protocol):
    """An adapter's rows in page form on the host."""

    def read(self, first: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill ``buffers`` (uint8 [n, page_bytes]) with the pages from ``first`` on. Raises AdapterDamaged. Any thread."""
        ...


class PageLoader(Protocol):
    """One per device. All calls on the worker's thread."""

    def load(self, rows: HostRows, first: int, pages: Sequence[int]) -> str | None:
        """Copy ``len(pages)`` pages of ``rows``, from page ``first`` on, to ``pages``: there for whatever is computed next.

        What went wrong, or None. After a fault the pages hold zeros: whoever computes with them gets nothing of
        anybody else's.
        """
        ...

    def prefetch(self, rows: HostRows, first: int, pages: Sequence[int]) -> None:
        """Copy pages as ``load`` does, but at any time until the next ``finish`` returns."""
        ...

    def finish(self) -> list[str | None]:
        """Wait for every prefetch; what became of each, in their order."""
        ...

    def close(self) -> None:
        """Give back what it holds. Idempotent."""
        ...


class CpuPageLoader:
    """Reads straight into the arena; prefetches on a thread of its own, which computes nothing but checksums."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._thread: ThreadPoolExecutor | None = None
        self._prefetches: list[Future[str | None]] = []

    def load(self, rows: HostRows, first: int, pages: Sequence[int]) -> str | None:
        """See PageLoader."""
        return read_or_zero(rows, first, self._storage.page_views(pages))

    def prefetch(self, rows: HostRows, first: int, pages: Sequence[int]) -> None:
        """See PageLoader."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "adapter-prefetch")
        self._prefetches.append(self._thread.submit(self.load, rows, first, pages))

    def finish(self) -> list[str | None]:
        """See PageLoader."""
        if not self._prefetches:
            return []
        faults = [future.result() for future in self._prefetches]
        self._prefetches.clear()
        return faults

    def close(self) -> None:
        """See PageLoader."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None


class StagedPageLoader:
    """For devices that the host cannot write to: rows are read into a staging buffer and copied on from there.

    On CUDA the buffer is pinned and the copies go through a stream of their own; what is computed later waits for
    them on the device, not on the host.
    """

    def __init__(self, storage: Storage, staging_pages: int = 64) -> None:
        self._storage = storage
        is_cuda = storage.device.type == "cuda"
        self._staging = torch.empty((staging_pages, storage.layout.page_bytes), dtype=torch.uint8, pin_memory=is_cuda)
        self._stream = torch.cuda.Stream(storage.device) if is_cuda else None
        self._faults: list[str | None] = []

    def load(self, rows: HostRows, first: int, pages: Sequence[int]) -> str | None:
        """See PageLoader."""
        fault = self._copy(rows, first, pages)
        if self._stream is not None:
            torch.cuda.current_stream(self._storage.device).wait_stream(self._stream)
        return fault

    def prefetch(self, rows: HostRows, first: int, pages: Sequence[int]) -> None:
        """Read now, copy on the stream: the device computes what was launched before meanwhile."""
        self._faults.append(self._copy(rows, first, pages))

    def finish(self) -> list[str | None]:
        """See PageLoader."""
        faults, self._faults = self._faults, []
        if faults and self._stream is not None:
            torch.cuda.current_stream(self._storage.device).wait_stream(self._stream)
        return faults

    def close(self) -> None:
        """Nothing to give back."""

    def _copy(self, rows: HostRows, first: int, pages: Sequence[int]) -> str | None:
        if self._stream is None:
            return self._copy_on(rows, first, pages)
        # Kernels that were launched earlier may still read or write these pages: wait for them.
        self._stream.wait_stream(torch.cuda.current_stream(self._storage.device))
        with torch.cuda.stream(self._stream):
            return self._copy_on(rows, first, pages)

    def _copy_on(self, rows: HostRows, first: int, pages: Sequence[int]) -> str | None:
        fault: str | None = None
        for start in range(0, len(pages), len(self._staging)):
            part = pages[start : start + len(self._staging)]
            if self._stream is not None:
                # The next read overwrites the staging buffer, so that the copy from it must be over.
                self._stream.synchronize()
            staged = self._staging[: len(part)]
            fault = read_or_zero(rows, first + start, [staged.numpy()]) or fault
            self._storage.write_pages(part, staged)
        return fault


def read_or_zero(rows: HostRows, first: int, views: Sequence[np.ndarray]) -> str | None:
    """Read rows into ``views``; after a fault fill them with zeros and say what it was."""
    try:
        rows.read(first, views)
        return None
    except AdapterDamaged as error:
        fault = str(error)
    except Exception as error:  # Whatever it is, it must neither end the engine nor leave bytes of others in the pages.
        fault = f"the rows could not be copied: {error}"
    for view in views:
        view.fill(0)
    return fault


def page_loader(storage: Storage) -> PageLoader:
    """The loader that suits the arena's device."""
    return CpuPageLoader(storage) if storage.device.type == "cpu" else StagedPageLoader(storage)


__all__ = ["CpuPageLoader", "HostRows", "PageLoader", "StagedPageLoader", "page_loader"]
