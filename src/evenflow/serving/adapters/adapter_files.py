"""Opening the files of an adapter folder that a stranger may have filled: ordinary files, bounded, from where they may come.

A link may lead anywhere, and what it leads to would be quoted in an error or served under another name. So every file is
resolved as it is opened, and must lie

    in the adapter's own folder                     also by way of links: Kubernetes mounts are name -> ..data/name
    in the blobs of the hub cache it is a snapshot of      models--NAME/snapshots/REVISION/x -> ../../blobs/HASH
    in a folder that the operator has named         the first folder below --adapter-dir, and the allowed roots
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evenflow.base.errors import AdapterUnavailable

FileState = list[int]
"""Size, modification time and change time in ns, inode: differs whenever the content may differ."""

_HOST_FAULTS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EIO, errno.EROFS, errno.ESTALE, errno.EAGAIN)
)


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """What was read of one file, and what the file was at that time."""

    data: bytes
    state: FileState


def read_file(folder: Path, name: str, *, allowed: Sequence[Path], max_bytes: int) -> OpenedFile:
    """Read the whole of ``folder/name``. ``allowed``: folders beside ``folder`` where it may lie.

    Raises ValueError, saying what is wrong, for a file that is none, lies elsewhere or is too large; FileNotFoundError;
    AdapterUnavailable where the host is at fault; and OSError.
    """
    path = folder / name
    try:
        _check_regular(os.stat(path), name)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise as_host_fault(error) from None
    try:
        status = os.fstat(descriptor)
        _check_regular(status, name)
        _check_place(Path(_path_of(descriptor, path)), folder, name, allowed)
        if status.st_size > max_bytes:
            raise ValueError(f"{name} has {status.st_size} bytes; allowed: {max_bytes}")
        data = _read(descriptor, status.st_size)
        if state_of(os.fstat(descriptor)) != state_of(status) or len(data) != status.st_size:
            raise AdapterUnavailable(f"{name} changes while it is read")
        return OpenedFile(data, state_of(status))
    except OSError as error:
        raise as_host_fault(error) from None
    finally:
        os.close(descriptor)


def state_of(status: os.stat_result) -> FileState:
    """What changes whenever the file may hold something else. The change time cannot be set back, as the other can."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def as_host_fault(error: OSError) -> Exception:
    """``error``, or AdapterUnavailable if it is the host's fault and not that of what was asked for."""
    if error.errno in _HOST_FAULTS:
        return AdapterUnavailable(f"the host cannot do it now: {error.strerror}")
    return error


def is_inside(path: Path, folder: Path, allowed: Sequence[Path]) -> bool:
    """True if ``path`` (no links in it) may belong to the adapter in ``folder``. ``allowed``: further folders."""
    own = Path(os.path.realpath(folder))
    places = [own, *(Path(os.path.realpath(root)) for root in allowed)]
    places += [parent.parent / "blobs" for parent in own.parents if _is_snapshots(parent)]
    return any(path.is_relative_to(place) for place in places)


def _is_snapshots(folder: Path) -> bool:
    return folder.name == "snapshots" and folder.parent.name.startswith("models--")


def _check_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name} is not an ordinary file")


def _check_place(path: Path, folder: Path, name: str, allowed: Sequence[Path]) -> None:
    if not is_inside(path, folder, allowed):
        raise ValueError(f"{name} is a link that leads out of the adapter's folder")


def _path_of(descriptor: int, path: Path) -> str:
    """Where an open file lies, whatever its path leads to by now."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return os.path.realpath(path)


def _read(descriptor: int, size: int) -> bytes:
    parts = []
    while size > 0:
        part = os.read(descriptor, min(size, 16 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


__all__ = ["FileState", "OpenedFile", "as_host_fault", "is_inside", "read_file", "state_of"]
