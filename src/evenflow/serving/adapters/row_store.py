"""The host's store of adapters: each PEFT folder is converted once, to a row file in a cache folder on disk.

    CACHE/LAYOUT/rows/DIGEST.rows       the page image and its header (rows), one per set of weights
    CACHE/LAYOUT/sources/NAME.json      which weights a folder held when it was last read: sizes and times of its files

LAYOUT is a fingerprint of everything that decides where a row lies: model shape, element size, page size, shard.
A folder whose files have not changed is not read again. The server keeps working from its own copy whatever
becomes of the folder. Several processes may share a cache: files appear whole, and nothing depends on a file
staying, because a row file that is gone is made again from its folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from evenflow.base.errors import AdapterCacheFull, AdapterError, AdapterRejected, ConfigError
from evenflow.base.memory_size import format_size
from evenflow.serving.adapters.page_image import page_image
from evenflow.serving.adapters.peft_format import CONFIG_FILE, WEIGHTS_FILE
from evenflow.serving.adapters.peft_reader import PeftAdapter, read_adapter
from evenflow.serving.adapters.row_file import RowFile, open_rows, write_rows, write_whole
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.layout import ArenaLayout

log = logging.getLogger("evenflow.lora")

FORMAT = 1
"""Raise it whenever the bytes of an image change their meaning: older files are then never read."""
_SETTLED_NS = 2_000_000_000
"""A file changed less than this before it was read may change again within one tick of its time stamp: read it again."""
_STALE_TEMPORARY_S = 3600.0

SourceState = list[list[int]]
"""[size, mtime in ns] of the adapter's config and weights."""


class RowStore:
    """Row files of one layout: under tensor parallelism each rank has a layout, and so rows, of its own.

    ``capacity_bytes``: of the whole cache folder; None: 64 GiB, or half of what the disk has left for it if that is
    less. ``prepare`` may run on any thread, one at a time. Raises ConfigError if the folder cannot be used.
    """

    def __init__(self, folder: Path, layout: ArenaLayout, *, capacity_bytes: int | None = None) -> None:
        self.folder = folder
        self.layout = layout
        self.fingerprint = layout_fingerprint(layout)
        self._rows = folder / self.fingerprint / "rows"
        self._sources = folder / self.fingerprint / "sources"
        self._signatures: dict[AdapterSignature, AdapterSignature] = {}
        self._lock = threading.Lock()
        try:
            for needed in (self._rows, self._sources):
                needed.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not os.access(self._rows, os.W_OK | os.X_OK):
                raise PermissionError(13, "it is not writable")
            self._size_bytes = self._clean()
            room = shutil.disk_usage(folder).free + self._size_bytes
        except OSError as error:
            raise ConfigError(f"the adapter cache {folder} cannot be used: {error.strerror}; name another folder") from None
        self.capacity_bytes = min(64 << 30, room // 2) if capacity_bytes is None else capacity_bytes

    def prepare(self, path: Path, max_rank: int | None, in_use: Collection[str] = ()) -> RowFile:
        """The row file of the PEFT adapter in folder ``path``; made now if there is none for what the folder holds.

        ``in_use``: digests whose files must stay. Raises AdapterNotFound, AdapterRejected with all reasons,
        AdapterCacheFull if those in use leave no room, and AdapterError if the disk has none.
        """
        with self._lock:
            state = _state_of(path)
            file = self._known(path, state)
            if file is None or (max_rank is not None and file.header.record.signature.max_rank > max_rank):
                file = self._read(path, max_rank, in_use)
            with contextlib.suppress(OSError):
                os.utime(file.path)  # when it was last wanted: the cleaning goes by that
            return file

    def discard(self, digest: AdapterDigest) -> None:
        """Delete the rows of ``digest``: they are damaged, or nobody wants them kept. Whoever has them open keeps them."""
        path = self._path(digest)
        with self._lock, contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self._size_bytes -= size

    @property
    def size_bytes(self) -> int:
        """Bytes of all row files in the cache folder, as this process knows it."""
        return self._size_bytes

    def _known(self, path: Path, state: SourceState | None) -> RowFile | None:
        """The row file of a folder that has not changed since it was read."""
        if state is None:
            return None
        try:
            source = json.loads(self._source(path).read_bytes())
            if source["state"] != state or source["read_ns"] - max(time_ns for _, time_ns in state) < _SETTLED_NS:
                return None
            return self._open(AdapterDigest(source["digest"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _open(self, digest: AdapterDigest) -> RowFile | None:
        """The row file of ``digest``; None if there is none that is whole and of this layout."""
        try:
            file = open_rows(self._path(digest), self._signatures)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("a row file is made again: %s", error)
            return None
        header = file.header
        is_ours = header.layout == self.fingerprint and header.page_bytes == self.layout.page_bytes
        return file if is_ours and header.record.digest == digest else None

    def _read(self, path: Path, max_rank: int | None, in_use: Collection[str]) -> RowFile:
        adapter, state, read_ns = self._read_source(path, max_rank)
        file = self._open(adapter.digest)
        if file is None:
            self._convert(adapter, path, in_use)
            file = self._open(adapter.digest)
            if file is None:
                raise AdapterError(f"the rows of adapter {adapter.digest[:12]} cannot be read back from {self._rows}")
        source = {"path": str(path), "state": state, "read_ns": read_ns, "digest": adapter.digest}
        with contextlib.suppress(OSError):  # without it the folder is read again next time
            write_whole(self._source(path), [json.dumps(source).encode()], is_durable=False)
        return file

    def _read_source(self, path: Path, max_rank: int | None) -> tuple[PeftAdapter, SourceState, int]:
        for _ in range(3):
            before, read_ns = _state_of(path), time.time_ns()
            adapter = read_adapter(path, self.layout.whole_shape, max_rank)
            if before is not None and before == _state_of(path):
                return adapter, before, read_ns
        raise AdapterError(f"the files of the adapter in {path} change while they are read")

    def _convert(self, adapter: PeftAdapter, path: Path, in_use: Collection[str]) -> None:
        image, record = image_of(adapter, self.layout, path)
        self._make_room(image.nbytes, in_use)
        try:
            write_rows(self._path(adapter.digest), record, adapter.target_modules, self.fingerprint, image)
        except OSError as error:
            raise AdapterError(f"the adapter cache cannot take {format_size(image.nbytes)} more: {error.strerror}") from None
        self._size_bytes += image.nbytes

    def _make_room(self, num_bytes: int, in_use: Collection[str]) -> None:
        """Delete row files until ``num_bytes`` more fit: those whose folder is gone first, then the longest unwanted."""
        if self._size_bytes + num_bytes <= self.capacity_bytes:
            return
        self._size_bytes = self._clean()
        live = self._live_digests()
        files = []
        for path in self._row_files():
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((path.stem in live, status.st_mtime_ns, status.st_size, path))
        for _, _, size, path in sorted(files):
            if self._size_bytes + num_bytes <= self.capacity_bytes:
                return
            if path.stem not in in_use:
                with contextlib.suppress(OSError):
                    path.unlink()
                    self._size_bytes -= size
        if self._size_bytes + num_bytes > self.capacity_bytes:
            raise AdapterCacheFull(
                f"the adapter cache is full: {format_size(self._size_bytes)} of {format_size(self.capacity_bytes)} are taken "
                f"by {len(in_use)} registered adapters and {format_size(num_bytes)} more are needed; unload some, allow "
                "it more (--adapter-cache-size), or keep adapters in --adapter-dir: those make room for each other"
            )

    def _live_digests(self) -> set[str]:
        """Digests that some folder still held when it was last read, and that folder is there."""
        live = set()
        for file in self.folder.glob("*/sources/*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                source = json.loads(file.read_bytes())
                if (Path(source["path"]) / CONFIG_FILE).exists():
                    live.add(source["digest"])
                else:
                    file.unlink()
        return live

    def _clean(self) -> int:
        """Delete what interrupted writes left behind. Returns the bytes of all row files."""
        oldest_s = time.time() - _STALE_TEMPORARY_S
        for path in self.folder.glob("*/*/.*.tmp"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest_s:
                    path.unlink()
        total = 0
        for path in self._row_files():
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    def _row_files(self) -> Iterator[Path]:
        return self.folder.glob("*/rows/*.rows")

    def _path(self, digest: AdapterDigest) -> Path:
        return self._rows / f"{digest}.rows"

    def _source(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:40]
        return self._sources / f"{name}.json"


def image_of(adapter: PeftAdapter, layout: ArenaLayout, path: Path) -> tuple[np.ndarray, AdapterRecord]:
    """(page image, record) of an adapter read from ``path``. Raises AdapterRejected if a weight exceeds the dtype."""
    try:
        placement, image = page_image(adapter, layout)
    except OverflowError as error:
        raise AdapterRejected(str(path), [str(error)]) from None
    return image, AdapterRecord(adapter.digest, adapter.signature, placement.num_pages, placement.size_bytes)


def layout_fingerprint(layout: ArenaLayout) -> str:
    """Names all that decides what an image's bytes mean, the shard included: 16 hex digits."""
    return hashlib.sha256(json.dumps([FORMAT, asdict(layout)], sort_keys=True).encode()).hexdigest()[:16]


def _state_of(path: Path) -> SourceState | None:
    """Sizes and times of the files that decide the weights; None if one is not there."""
    try:
        statuses = [(path / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError:
        return None
    return [[status.st_size, status.st_mtime_ns] for status in statuses]


__all__ = ["RowStore", "image_of", "layout_fingerprint"]
