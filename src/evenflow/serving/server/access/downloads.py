"""Adapters of other storage, copied into a folder of bounded size: s3://, gs://, memory:// and whatever else fsspec knows.

    CACHE/KEY/FILES and CACHE/KEY/manifest.json      KEY is made of the address; the manifest holds sizes, tags and sha256

What was copied is used again as long as storage says that nothing has changed, and its own bytes have their digests. An
address may end in ``#sha256=HEX``: the digest that its weights file must have. Needs the extra ``remote``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from evenflow.base.errors import AdapterNotFound, AdapterRejected, AdapterUnavailable
from evenflow.base.memory_size import format_size

FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_model.bin",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""What is copied of a folder; anything else in it is left where it is."""
WEIGHTS = FILES[1:4]
_CHUNK_BYTES = 1 << 20
_AT_ONCE = 4
_FAULT_CHARACTERS = 200
_TAGS = ("ETag", "etag", "checksum", "sha256", "md5", "mtime", "LastModified", "last_modified", "created", "size")
"""What a file system may say of a file that changes with it."""


class DownloadCache:
    """Copies adapters into ``folder``, which holds at most ``capacity_bytes``: what was used longest ago goes first.

    ``timeout_s``: for one adapter. Used inside one event loop; the copying is done by threads, four at once.
    """

    def __init__(self, folder: Path, capacity_bytes: int, timeout_s: float) -> None:
        self._folder = folder
        self._capacity_bytes = capacity_bytes
        self._timeout_s = timeout_s
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def folder_of(self, address: str) -> Path:
        """The folder with the files that ``address`` has now.

        Raises AdapterNotFound if it has no adapter, AdapterRejected if that is too large or has another digest than it
        should, and AdapterUnavailable if the storage, or the package for it, cannot be reached.
        """
        plain, _, digest = address.partition("#")
        if digest and not re.fullmatch(r"sha256=[0-9a-fA-F]{64}", digest):
            raise AdapterRejected(address, ["what follows # must be sha256= and 64 hex digits"])
        wanted = digest.removeprefix("sha256=").lower()
        async with self._at_once:
            try:
                return await asyncio.wait_for(asyncio.to_thread(self._copy, plain, wanted), self._timeout_s + 5)
            except TimeoutError:
                raise AdapterUnavailable(f"{_shown(plain)} could not be copied within {self._timeout_s:.0f} s") from None

    def _copy(self, address: str, wanted: str) -> Path:
        deadline_s = time.monotonic() + self._timeout_s
        try:
            import fsspec
        except ImportError:
            raise AdapterUnavailable(
                f"{_shown(address)} needs fsspec; install it with: pip install 'evenflow[remote]'"
            ) from None
        try:
            system, root = fsspec.core.url_to_fs(address)
            system.invalidate_cache()
            found = {name: info for name in FILES if (info := _info(system, f"{root.rstrip('/')}/{name}")) is not None}
        except ImportError as error:
            raise AdapterUnavailable(f"{_shown(address)} needs another package: {error}") from None
        except Exception as error:  # whatever a storage's client raises
            raise AdapterUnavailable(f"{_shown(address)} cannot be reached ({_fault(error)})") from None
        if FILES[0] not in found or not any(name in found for name in WEIGHTS):
            raise AdapterNotFound(f"no adapter at {_shown(address)}: it needs {FILES[0]} and weights")
        found = {name: info for name, info in found.items() if name not in WEIGHTS or name == _weights(found)}
        tags = {name: {tag: str(info[tag]) for tag in _TAGS if info.get(tag) is not None} for name, info in found.items()}
        target = self._folder / hashlib.sha256(address.encode()).hexdigest()[:40]
        manifest = self._sound(target, tags)
        if manifest is None:
            manifest = self._fetch(system, root, found, tags, target, address, deadline_s)
        if wanted and manifest["sha256"][_weights(found)] != wanted:
            raise AdapterRejected(_shown(address), [f"{_weights(found)} has another sha256 than the address says"])
        with contextlib.suppress(OSError):
            os.utime(target)
        return target

    def _sound(self, target: Path, tags: dict[str, dict[str, str]]) -> dict[str, Any] | None:
        """The manifest of what was copied before, if that is what the storage has and nothing of it was changed here."""
        try:
            manifest: dict[str, Any] = json.loads((target / "manifest.json").read_bytes())
            if manifest["tags"] != tags:
                return None
            sound = all(_sha256(target / name) == digest for name, digest in manifest["sha256"].items())
            return manifest if sound and manifest["sha256"].keys() == tags.keys() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _fetch(
        self,
        system: Any,
        root: str,
        found: dict[str, dict[str, Any]],
        tags: dict[str, dict[str, str]],
        target: Path,
        address: str,
        deadline_s: float,
    ) -> dict[str, Any]:
        total = sum(int(info.get("size") or 0) for info in found.values())
        if total > self._capacity_bytes:
            raise AdapterRejected(
                _shown(address),
                [f"it has {format_size(total)}; the download cache holds {format_size(self._capacity_bytes)}"],
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(total, target)
            scratch = Path(tempfile.mkdtemp(prefix=".copy-", dir=self._folder))
        except OSError as error:
            raise AdapterUnavailable(f"the download cache {self._folder} cannot be used: {error.strerror}") from None
        try:
            digests = {}
            left = total
            for name in found:
                path = f"{root.rstrip('/')}/{name}"
                digests[name], size = _copy_file(system, path, scratch / name, left, deadline_s, address)
                left -= size
            manifest = {"address": address, "tags": tags, "sha256": digests}
            (scratch / "manifest.json").write_text(json.dumps(manifest))
            shutil.rmtree(target, ignore_errors=True)
            scratch.replace(target)
            return manifest
        except OSError as error:
            raise AdapterUnavailable(f"{_shown(address)} could not be copied ({_fault(error)})") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _make_room(self, num_bytes: int, target: Path) -> None:
        """Delete what was used longest ago until ``num_bytes`` more fit; row files made of it stay where they are."""
        entries = []
        for entry in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if entry.is_dir() and not entry.name.startswith("."):
                    size = sum(file.stat().st_size for file in entry.iterdir() if file.name in FILES)
                    entries.append((entry.stat().st_mtime, size, entry))
        used = sum(size for _, size, entry in entries if entry != target)
        for _, size, entry in sorted(entries):
            if used + num_bytes <= self._capacity_bytes:
                return
            if entry != target:
                shutil.rmtree(entry, ignore_errors=True)
                used -= size


def _info(system: Any, path: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = system.info(path)
    except FileNotFoundError:
        return None
    return info if info.get("type") == "file" else None


def _copy_file(system: Any, source: str, target: Path, most_bytes: int, deadline_s: float, address: str) -> tuple[str, int]:
    """(sha256, bytes) of what was copied. Never more than ``most_bytes``, whatever the storage said of the size."""
    digest, size = hashlib.sha256(), 0
    with system.open(source, "rb") as opened, target.open("wb") as written:
        while part := opened.read(_CHUNK_BYTES):
            size += len(part)
            if size > most_bytes:
                raise AdapterRejected(_shown(address), [f"{target.name} is longer than its storage says"])
            if time.monotonic() > deadline_s:
                raise AdapterUnavailable(f"{_shown(address)} could not be copied in time")
            digest.update(part)
            written.write(part)
    return digest.hexdigest(), size


def _weights(found: dict[str, Any]) -> str:
    return next(name for name in WEIGHTS if name in found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_FAULT_CHARACTERS]


def _shown(address: str) -> str:
    """The address without what may be a password in it."""
    return re.sub(r"//[^/@]*@", "//***@", address)[:_FAULT_CHARACTERS]


__all__ = ["FILES", "DownloadCache"]
