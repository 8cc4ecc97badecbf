"""Packed matrices of one model on the disk, so that the next start need not quantise again.

    CACHE/DIGEST.matrices     one file for each model, scheme and shard, and for the processor's layout

DIGEST names all that decides the bytes: the weight files by size, times and number, the scheme, the part that a rank holds.
A file appears whole, and whoever reads it has it to the end, whatever becomes of its name. Every matrix has a checksum (XXH3,
64 bits), tested on the bytes that have arrived. A damaged file is as good as none. The folder is bounded: the longest unused
files go first.

    0     magic, 8 bytes; uint64 length of the index, uint64 XXH3 of it, little-endian
    24    index, JSON: key of each matrix, and for each of its parts what it is, where it lies and its checksum
    n x 64  the parts
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from xxhash import xxh3_64_intdigest

from evenflow.base.memory_size import format_size

log = logging.getLogger("evenflow.engine")

FORMAT = 1
"""Raise it whenever the bytes of a packed matrix change their meaning."""
_MAGIC = b"EVFLMAT1"
_PREFIX = struct.Struct("<8sQQ")
_LINE = 64
_LONGEST_INDEX = 64 << 20
_STALE_TEMPORARY_S = 3600.0

Meta = dict[str, Any]
"""What a part is, as JSON: whatever its packing needs to know."""


def model_digest(files: Sequence[Path], *further: object) -> str:
    """Names the content of files, by their names, sizes, times and numbers, and ``further`` values: 40 hex digits."""
    said: list[object] = [FORMAT, *map(str, further)]
    for file in sorted(files):
        status = file.stat()
        said.append([str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:40]


class MatrixCache:
    """The matrices of one model. Reads from a whole file, or gathers what it is given into one; ``close`` puts it in place.

    A context manager: the file is put in place only if the block ends without an error. A folder that cannot be used, or has
    no room, is said once in the log, and nothing is kept.
    """

    def __init__(self, folder: Path, digest: str, capacity_bytes: int | None = None) -> None:
        self._path = folder / f"{digest}.matrices"
        self._capacity_bytes = capacity_bytes
        self._file: BinaryIO | None = None
        self._index: dict[str, list[Meta]] = {}
        self._new: dict[str, list[Meta]] = {}
        self._target: BinaryIO | None = None
        self._temporary = folder / f".{digest}.{os.getpid()}.tmp"
        self._is_refused = self._has_read = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._open()
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            log.warning("quantised weights are made again: %s: %s", self._path, error)
            self._index = {}

    def read(self, key: str) -> list[tuple[Meta, torch.Tensor]] | None:
        """What was kept as ``key``: each part with its bytes, at a multiple of 64; None if nothing was, or it is damaged."""
        found = self._index.get(key)
        if found is None or self._file is None:
            return None
        parts = []
        for meta in found:
            room = torch.empty(meta["bytes"] + _LINE, dtype=torch.uint8)
            data = room[-room.data_ptr() % _LINE :][: meta["bytes"]]
            view = data.numpy().data
            self._file.seek(meta["at"])
            if self._file.readinto(view) != meta["bytes"] or xxh3_64_intdigest(view) != meta["checksum"]:  # type: ignore[attr-defined]
                log.warning("quantised weights are made again: %s is damaged", self._path)
                self._index = {}
                with contextlib.suppress(OSError):
                    self._path.unlink()
                return None
            parts.append((meta["what"], data))
        self._has_read = True
        return parts

    def add(self, key: str, parts: Sequence[tuple[Meta, torch.Tensor]]) -> None:
        """Keep ``parts`` as ``key``; put in place by ``close``."""
        if self._is_refused:
            return
        try:
            if self._target is None:
                self._target = open(self._temporary, "wb")  # noqa: SIM115 - closed by close()
                self._target.seek(_LINE)
            kept = []
            for what, data in parts:
                at = -(-self._target.tell() // _LINE) * _LINE
                self._target.seek(at)
                view = data.reshape(-1).numpy().data
                self._target.write(view)
                kept.append({"what": what, "at": at, "bytes": len(view), "checksum": xxh3_64_intdigest(view)})
            self._new[key] = kept
        except OSError as error:
            self._give_up(error)

    def close(self, is_whole: bool = True) -> None:
        """End reading; put what was added in place, if ``is_whole``."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._target is None:
            return
        try:
            # Where some came from a file that was damaged further on, the next start makes a whole one.
            if is_whole and not self._has_read:
                self._put_in_place(self._target)
        except OSError as error:
            self._give_up(error)
        finally:
            if self._target is not None:
                self._target.close()
            self._target = None
            with contextlib.suppress(OSError):
                self._temporary.unlink()

    def __enter__(self) -> MatrixCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(is_whole=kind is None)

    def _open(self) -> None:
        try:
            self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        except FileNotFoundError:
            return
        size = os.fstat(self._file.fileno()).st_size
        magic, at, _ = _PREFIX.unpack(self._file.read(_PREFIX.size))
        if magic != _MAGIC or not 0 < at < size or size - at > _LONGEST_INDEX:
            raise ValueError("it is no file of quantised weights")
        self._file.seek(at)
        text = self._file.read(size - at)
        self._file.seek(0)
        if xxh3_64_intdigest(text) != _PREFIX.unpack(self._file.read(_PREFIX.size))[2]:
            raise ValueError("its index is damaged")
        self._index = json.loads(text)
        with contextlib.suppress(OSError):
            os.utime(self._path)  # when it was last wanted: the cleaning goes by that

    def _put_in_place(self, target: BinaryIO) -> None:
        at = target.tell()
        text = json.dumps(self._new).encode()
        target.write(text)
        target.seek(0)
        target.write(_PREFIX.pack(_MAGIC, at, xxh3_64_intdigest(text)))
        target.flush()
        os.fsync(target.fileno())
        if self._make_room(at + len(text)):
            self._temporary.replace(self._path)

    def _make_room(self, num_bytes: int) -> bool:
        """Delete other files, the longest unused first, until ``num_bytes`` fit."""
        folder = self._path.parent
        now = time.time()
        files = []
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                status = path.stat()
                if path.suffix == ".matrices" and path != self._path:
                    files.append((status.st_mtime_ns, status.st_size, path))
                elif path.suffix == ".tmp" and path != self._temporary and now - status.st_mtime > _STALE_TEMPORARY_S:
                    path.unlink()
        total = sum(size for _, size, _ in files)
        capacity = self._capacity_bytes
        if capacity is None:
            capacity = min(64 << 30, (shutil.disk_usage(folder).free + total + num_bytes) // 2)
        for _, size, path in sorted(files):
            if total + num_bytes <= capacity:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
        if total + num_bytes > capacity:
            log.warning(
                "quantised weights of %s are not kept: %s holds %s", format_size(num_bytes), folder, format_size(capacity)
            )
            return False
        return True

    def _give_up(self, error: OSError) -> None:
        log.warning("quantised weights are not kept for the next start: %s: %s", self._path.parent, error.strerror)
        if self._target is not None:
            self._target.close()
        self._target = None
        self._new = {}
        self._is_refused = True
        with contextlib.suppress(OSError):
            self._temporary.unlink()


__all__ = ["MatrixCache", "model_digest"]
