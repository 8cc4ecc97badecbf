"""The host's store of adapters: each PEFT folder is converted once, to a row file in a cache folder on disk.

    CACHE/LAYOUT/rows/DIGEST.rows       the page image and its header (rows), one per set of weights
    CACHE/LAYOUT/sources/NAME.json      which weights a folder held when it was last read: sizes and times of its files

LAYOUT is a fingerprint of everything that decides where a row lies: model shape, element size, page size, shard.
A folder whose files have not changed is not read again, unless the caller wants its content looked at. The server keeps
working from its own copy whatever becomes of the folder. Several processes may share a cache: files appear whole, rows
that requests are running with are locked (``RowFile.hold``) and never deleted, and nothing else depends on a file staying,
because a row file that is gone is made again from its folder. How a folder is read is ``reading``'s business.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from evenflow.base.errors import AdapterCacheFull, AdapterUnavailable, ConfigError
from evenflow.base.memory_size import format_size
from evenflow.serving.adapters.adapter_files import FileState, state_of
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.peft_format import CONFIG_FILE
from evenflow.serving.adapters.reading import AdapterReading, InProcessReading, ReadAdapter
from evenflow.serving.adapters.row_file import RowFile, open_rows, write_rows, write_whole
from evenflow.serving.adapters.tensor_source import weights_file
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.layout import ArenaLayout

log = logging.getLogger("evenflow.lora")

FORMAT = 2
"""Raise it whenever the bytes of an image change their meaning: older files are then never read."""
_SETTLED_NS = 2_000_000_000
"""A file changed less than this before it was read may change again within one tick of its time stamp: read it again."""
_SETTLED_CHANGE_NS = 20_000_000
"""The same for the change time, which the system sets by its own clock: ticks of 1 to 10 ms."""
_STALE_TEMPORARY_S = 3600.0

SourceState = list[FileState]
"""Of the adapter's config and weights."""


class RowStore:
    """Row files of one layout: under tensor parallelism each rank has a layout, and so rows, of its own.

    ``capacity_bytes``: of the whole cache folder; None: 64 GiB, or half of what the disk has left for it if that is
    less. ``base``: what some adapters' rows are made with; ``reading`` must read with the same. ``prepare`` may run on any
    thread, on several at once. Raises ConfigError if the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        layout: ArenaLayout,
        *,
        capacity_bytes: int | None = None,
        reading: AdapterReading | None = None,
        base: BaseWeights | None = None,
    ) -> None:
        self.folder = folder
        self._base = base
        self._reading = reading or InProcessReading(base=base)
        self.layout = layout
        self.fingerprint = layout_fingerprint(layout)
        self._rows = folder / self.fingerprint / "rows"
        self._sources = folder / self.fingerprint / "sources"
        self._signatures: dict[AdapterSignature, AdapterSignature] = {}
        self._lock = threading.Lock()
        self._folder_locks = [threading.Lock() for _ in range(64)]
        """Whoever wants a folder that is being read waits for that; strangers rarely meet."""
        self._changed_ns: dict[str, int] = {}
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

    def prepare(
        self,
        path: Path,
        max_lora_rank: int | None,
        in_use: Collection[str] = (),
        *,
        boundary: Path | None = None,
        must_read: bool = False,
        displaces: bool = False,
    ) -> RowFile:
        """The row file of the PEFT adapter in folder ``path``; made now if there is none for what the folder holds.

        ``in_use``: digests whose files must stay; with ``displaces``, only those whose folder is gone. ``boundary``: a folder
        inside which links may lead, beside the adapter's own. ``must_read``: look at the content even if sizes and times
        say that it is known. Raises AdapterNotFound, AdapterRejected with all reasons, AdapterCacheFull if those in use
        leave no room, and AdapterUnavailable if the disk has none or the host is at fault otherwise.
        """
        with self._folder_locks[hash(path) % len(self._folder_locks)]:
            file = None if must_read else self._known(path, _state_of(path))
            if file is None or (max_lora_rank is not None and file.header.record.signature.max_lora_rank > max_lora_rank):
                file = self._read(path, max_lora_rank, in_use, boundary, displaces)
        with contextlib.suppress(OSError):
            os.utime(file.path)  # when it was last wanted: the cleaning goes by that
        return file

    def keep(self, record: AdapterRecord, target_modules: Sequence[str], image: np.ndarray, in_use: Collection[str]) -> RowFile:
        """The row file of rows that were made here, not read from a folder. Raises AdapterCacheFull, AdapterUnavailable."""
        file = self._open(record.digest)
        if file is None:
            with self._lock:
                self._make_room(image.nbytes, in_use, False)
                self._size_bytes += image.nbytes
            try:
                write_rows(self._path(record.digest), record, target_modules, self.fingerprint, image)
            except OSError as error:
                with self._lock:
                    self._size_bytes -= image.nbytes
                raise AdapterUnavailable(f"the adapter cache cannot take it: {error.strerror}") from None
            file = self._open(record.digest)
        if file is None:
            raise AdapterUnavailable(f"the rows of {record.digest[:12]} cannot be read back from {self._rows}")
        return file

    def close(self) -> None:
        """End whatever reads folders for this store. Idempotent."""
        self._reading.close()

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
            has_settled = all(
                source["read_ns"] - modified_ns >= _SETTLED_NS and source["read_ns"] - changed_ns >= _SETTLED_CHANGE_NS
                for _, modified_ns, changed_ns, _ in state
            )
            if source["state"] != state or not has_settled:
                return None
            if source["base"] and source["base"] != self._base_identity():
                return None
            file = self._open(AdapterDigest(source["digest"]))
            if file is not None:
                file.base_model = str(source["base_model"])
            return file
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _base_identity(self) -> str:
        return "" if self._base is None else self._base.identity

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

    def _read(
        self, path: Path, max_lora_rank: int | None, in_use: Collection[str], boundary: Path | None, displaces: bool
    ) -> RowFile:
        read_ns = time.time_ns()
        allowed = () if boundary is None else (boundary,)
        with self._reading.read(path, self.layout, max_lora_rank, allowed) as read:
            file = self._open(read.digest)
            if file is None:
                self._convert(read, in_use, displaces)
                file = self._open(read.digest)
                if file is None:
                    raise AdapterUnavailable(f"the rows of adapter {read.digest[:12]} cannot be read back from {self._rows}")
        for warning in read.warnings:
            log.warning("adapter %s: %s", path, warning)
        file.base_model = read.base_model
        source = {
            "path": str(path),
            "state": read.states,
            "read_ns": read_ns,
            "digest": read.digest,
            "base_model": read.base_model,
            "base": self._base_identity() if read.depends_on_base else "",
        }
        with contextlib.suppress(OSError):  # without it the folder is read again next time
            write_whole(self._source(path), [json.dumps(source).encode()], is_durable=False)
        return file

    def _convert(self, read: ReadAdapter, in_use: Collection[str], displaces: bool) -> None:
        with self._lock:
            self._make_room(read.num_bytes, in_use, displaces)
            self._size_bytes += read.num_bytes
        try:
            read.write(self._path(read.digest), self.fingerprint)
        except BaseException as error:
            with self._lock:
                self._size_bytes -= read.num_bytes
            if isinstance(error, OSError):
                raise AdapterUnavailable(
                    f"the adapter cache cannot take {format_size(read.num_bytes)} more: {error.strerror}"
                ) from None
            raise

    def _make_room(self, num_bytes: int, in_use: Collection[str], displaces: bool) -> None:
        """Delete row files until ``num_bytes`` more fit: those whose folder is gone first, then the longest unwanted."""
        if self._has_changed_outside():  # another server works in it
            self._size_bytes = self._clean()
        if self._size_bytes + num_bytes <= self.capacity_bytes:
            return
        self._size_bytes = self._clean()
        live = self._live_digests()
        files = []
        for path in self._row_files():
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((path.stem in live, status.st_mtime_ns, status.st_size, path))
        for is_live, _, size, path in sorted(files):
            if self._size_bytes + num_bytes <= self.capacity_bytes:
                return
            may_go = path.stem not in in_use or (displaces and is_live)
            if may_go and _unlink_unless_held(path):
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

    def _has_changed_outside(self) -> bool:
        """True if row files came or went since this was last asked; also after those of this process."""
        now = {}
        for folder in self.folder.glob("*/rows"):
            with contextlib.suppress(OSError):
                now[folder.parent.name] = folder.stat().st_mtime_ns
        before, self._changed_ns = self._changed_ns, now
        return now != before

    def _row_files(self) -> Iterator[Path]:
        return self.folder.glob("*/rows/*.rows")

    def _path(self, digest: AdapterDigest) -> Path:
        return self._rows / f"{digest}.rows"

    def _source(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:40]
        return self._sources / f"{name}.json"


def layout_fingerprint(layout: ArenaLayout) -> str:
    """Names all that decides what an image's bytes mean, the shard included: 16 hex digits."""
    return hashlib.sha256(json.dumps([FORMAT, asdict(layout)], sort_keys=True).encode()).hexdigest()[:16]


def _state_of(path: Path) -> SourceState | None:
    """What the files that decide the weights are like; None if one is not there."""
    try:
        return [state_of((path / name).stat()) for name in (CONFIG_FILE, weights_file(path))]
    except OSError:
        return None


def _unlink_unless_held(path: Path) -> bool:
    """Delete a row file, unless requests of some server on this machine are running with it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


__all__ = ["RowStore", "layout_fingerprint"]
