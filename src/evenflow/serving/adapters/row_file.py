"""One adapter's rows in page form on the host: in a row file on disk, or in an array.

A row file is a header and the page image (``image``). It is read with positioned reads straight into the
pages where it is wanted, never mapped: a mapped file that is cut short kills its reader with SIGBUS, a read
says so. Every page has a checksum (XXH3, 64 bits), tested on the bytes that have arrived, at every load.

    0        magic, 8 bytes
    8        uint64 length of the header text, uint64 XXH3 of it, little-endian
    24       header, JSON
    n x 4096 page 0, page 1, ...
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from evenflow.base.errors import AdapterDamaged
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature, SideRows
from evenflow.serving.core.request import AdapterDigest

_MAGIC = b"EVFLROW3"
"""Another one for each format: files of the first, ``EVFLROWS``, had checksums by CRC-32, the second had no side rows."""
_PREFIX = struct.Struct("<8sQQ")
_ALIGNMENT = 4096
_LONGEST_HEADER = 64 << 20
_BYTES_PER_READ = 512 << 10
_BUFFERS_PER_READ = 512
"""Below every system's limit for one vectored read (Linux: 1024)."""


@dataclass(frozen=True, slots=True)
class RowHeader:
    """What a row file says of itself."""

    record: AdapterRecord
    target_modules: tuple[str, ...]
    layout: str
    """Fingerprint of the layout and shard that the image was made for."""
    page_bytes: int
    checksums: tuple[int, ...]
    """XXH3 of each page, 64 bits."""


class MemoryRows:
    """Rows in an array, uint8 [num_pages, page_bytes]. For engines without a store."""

    is_open = True
    is_held = False
    is_gone = False
    base_model = ""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image

    @property
    def size_bytes(self) -> int:
        """Bytes of the image."""
        return self.image.nbytes

    def read(self, first: int, buffers: Sequence[np.ndarray]) -> None:
        """See RowFile."""
        for buffer in buffers:
            count = len(buffer)
            buffer[:] = self.image[first : first + count]
            first += count

    def read_ahead(self) -> None:
        """It is in memory."""

    def hold(self) -> bool:
        """Nobody can delete it."""
        return True

    def let_go(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is open."""


class RowFile:
    """A row file, opened when it is first read and closed by ``close``; may be opened again.

    What another process does to the file after it was opened cannot make a read wrong, only fail: a file
    that is replaced or deleted stays as it was for whoever has it open, and every page is checked.
    """

    def __init__(self, path: Path, header: RowHeader, offset: int) -> None:
        self.path = path
        self.header = header
        self._offset = offset
        self.base_model = ""
        """What the folder that it was found for says it was trained for."""
        self._file = -1
        self._is_held = False
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """True while a file handle is held."""
        return self._file >= 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the image."""
        return self.header.record.num_pages * self.header.page_bytes

    def read(self, first: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill ``buffers`` (each uint8 [n, page_bytes], contiguous) with the pages from ``first`` on, and check them.

        Raises AdapterDamaged if the file is gone, short or changed; the buffers hold anything then. Any thread.
        """
        # Checked while they are still in the processor's cache: a second pass over a large adapter would come from memory.
        at_once = max(1, _BYTES_PER_READ // self.header.page_bytes)
        together: list[np.ndarray] = []
        num_pages = 0
        for buffer in buffers:
            start = 0
            while start < len(buffer):
                part = buffer[start : start + at_once - num_pages]
                together.append(part)
                start, num_pages = start + len(part), num_pages + len(part)
                if num_pages == at_once or len(together) == _BUFFERS_PER_READ:
                    self._read_checked(first, together)
                    first, together, num_pages = first + num_pages, [], 0
        if together:
            self._read_checked(first, together)

    def read_ahead(self) -> None:
        """Ask the system to bring the rows from the disk into memory meanwhile. Never raises."""
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(self._open(), 0, 0, os.POSIX_FADV_WILLNEED)

    def hold(self) -> bool:
        """Keep every server on this machine from deleting the file until ``let_go``, or this process's end.

        Returns False if it is gone already: it has to be made again. Whoever deletes asks for the lock first.
        """
        self._is_held = True
        try:
            self._open()
        except OSError as error:  # whatever else it is will be told when the rows are read
            return not isinstance(error, FileNotFoundError)
        self._share_lock()
        return True

    @property
    def is_held(self) -> bool:
        """True between ``hold`` and ``let_go``."""
        return self._is_held

    @property
    def is_gone(self) -> bool:
        """True if the file was deleted while it was not open."""
        return not self.is_open and not self.path.exists()

    def let_go(self) -> None:
        """It may be deleted again. What is open stays readable even then."""
        with self._lock:
            self._is_held = False
            if self._file >= 0:
                with contextlib.suppress(OSError):
                    fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the file handle back, and with it the lock until the file is read again. Idempotent."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def __del__(self) -> None:
        self.close()

    def _open(self) -> int:
        with self._lock:
            if self._file < 0:
                self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                if self._is_held:
                    self._share_lock()
            return self._file

    def _share_lock(self) -> None:
        with contextlib.suppress(OSError):  # it is being deleted at this moment: what is open stays readable
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _read_checked(self, first: int, buffers: list[np.ndarray]) -> None:
        position = self._offset + first * self.header.page_bytes
        left: list[Any] = list(buffers)
        try:
            file = self._open()
            while left:
                count = os.preadv(file, left, position)
                if count == 0:
                    raise self._damage("is shorter than it was")
                position += count
                while left and count >= left[0].nbytes:
                    count -= left.pop(0).nbytes
                if count:
                    left[0] = memoryview(left[0]).cast("B")[count:]
        except OSError as error:
            raise self._damage(f"cannot be read ({error.strerror})") from None
        for buffer in buffers:
            for page in buffer:
                if xxh3_64_intdigest(page) != self.header.checksums[first]:
                    raise self._damage(f"does not have its checksum in page {first}")
                first += 1

    def _damage(self, what: str) -> AdapterDamaged:
        return AdapterDamaged(
            f"the stored rows of adapter {self.header.record.digest[:12]} are damaged: {self.path.name} {what}"
        )


def write_rows(path: Path, record: AdapterRecord, target_modules: Sequence[str], layout: str, image: np.ndarray) -> None:
    """Write ``image`` (uint8 [num_pages, page_bytes]) as a row file: wholly or not at all. Raises OSError."""
    pages = np.ascontiguousarray(image)
    fields = {
        "digest": record.digest,
        "layout": layout,
        "ranks": record.signature.lora_ranks,
        "side": [asdict(rows) for rows in record.signature.side],
        "vocab_size": record.signature.vocab_size,
        "num_pages": record.num_pages,
        "size_bytes": record.size_bytes,
        "page_bytes": image.shape[1],
        "target_modules": list(target_modules),
        "checksums": [xxh3_64_intdigest(page) for page in pages],
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    head = _PREFIX.pack(_MAGIC, len(text), xxh3_64_intdigest(text)) + text
    write_whole(path, [head + b"\0" * (-len(head) % _ALIGNMENT), pages.reshape(-1).data])


def open_rows(path: Path, signatures: dict[AdapterSignature, AdapterSignature] | None = None) -> RowFile:
    """The row file at ``path``, its header and length checked. No file handle is kept.

    ``signatures``: those known so far; equal ones are shared. Raises OSError, or ValueError saying what is wrong.
    """
    with path.open("rb") as file:
        start = file.read(_PREFIX.size)
        if len(start) < _PREFIX.size or not start.startswith(_MAGIC):
            raise ValueError(f"{path.name} is no row file of this version")
        _, length, checksum = _PREFIX.unpack(start)
        text = file.read(min(length, _LONGEST_HEADER))
        if len(text) < length or xxh3_64_intdigest(text) != checksum:
            raise ValueError(f"the header of {path.name} is damaged")
        size = os.fstat(file.fileno()).st_size
    header = _parse(json.loads(text), signatures if signatures is not None else {})
    offset = -(-(_PREFIX.size + length) // _ALIGNMENT) * _ALIGNMENT
    expected = offset + header.record.num_pages * header.page_bytes
    if size != expected:
        raise ValueError(f"{path.name} has {size} bytes; its header says {expected}")
    return RowFile(path, header, offset)


def is_row_file(path: Path) -> bool:
    """True if the file's first bytes say that it is a row file of this version. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def write_whole(path: Path, parts: Sequence[Any], *, is_durable: bool = True) -> None:
    """Write the bytes of ``parts`` to ``path`` so that a reader finds all of it or nothing. Raises OSError.

    ``is_durable``: so does whoever reads after a crash of the machine.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if not is_durable:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _parse(fields: dict[str, Any], signatures: dict[AdapterSignature, AdapterSignature]) -> RowHeader:
    side = tuple(SideRows(**{**rows, "token_ids": tuple(rows["token_ids"])}) for rows in fields["side"])
    signature = AdapterSignature(tuple(tuple(layer) for layer in fields["ranks"]), side, fields["vocab_size"])
    signature = signatures.setdefault(signature, signature)
    return RowHeader(
        record=AdapterRecord(AdapterDigest(fields["digest"]), signature, fields["num_pages"], fields["size_bytes"]),
        target_modules=tuple(fields["target_modules"]),
        layout=fields["layout"],
        page_bytes=fields["page_bytes"],
        checksums=tuple(fields["checksums"]),
    )


__all__ = ["MemoryRows", "RowFile", "RowHeader", "is_row_file", "open_rows", "write_rows", "write_whole"]
