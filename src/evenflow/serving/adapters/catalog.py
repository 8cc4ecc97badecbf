"""Adapters by name and by digest on the host: names point at digests, digests own rows.

A digest lives as long as a name points at it or a request in flight uses it. So a reload under the
same name leaves running requests their old weights, and an unload drains before it frees. It knows
neither slots nor pages of the arena (residency) and no clients; the bytes are the store's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from evenflow.base.errors import AdapterExists, AdapterNotFound, InvalidRequest
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.combining import combine
from evenflow.serving.adapters.host_tier import HostTier
from evenflow.serving.adapters.peft_reader import read_adapter
from evenflow.serving.adapters.reading import image_of, model_of
from evenflow.serving.adapters.row_file import MemoryRows, RowFile
from evenflow.serving.adapters.row_store import RowStore
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.layout import ArenaLayout

log = logging.getLogger("evenflow.lora")


@dataclass(frozen=True, slots=True, eq=False)
class PreparedAdapter:
    """One adapter, read, checked and laid out, ready to be registered."""

    record: AdapterRecord
    rows: RowFile | MemoryRows
    target_modules: tuple[str, ...]
    path: Path
    base_model: str = ""
    """What it says it was trained for."""
    boundary: Path | None = None
    """Folder inside which its links may lead."""


@dataclass(slots=True, eq=False)
class _Entry:
    prepared: PreparedAdapter
    names: dict[str, None] = field(default_factory=dict)
    """Names in the order they were given."""
    last_name: str = ""
    num_users: int = 0
    is_purged: bool = False
    """Its row file goes with it."""


class Catalog:
    """All adapters the engine may serve. ``prepare`` may run on any thread; everything else on the engine's.

    ``reserved``: names of the base model. ``max_lora_rank``: the highest that is accepted. ``on_freed`` is called
    with a digest after its last name and its last user are gone, and its rows with them. ``store``: keeps rows in
    files; without one they are kept in this process's memory, and ``base`` is what some adapters are worked out with.
    """

    def __init__(
        self,
        layout: ArenaLayout,
        *,
        reserved: Sequence[str] = (),
        max_lora_rank: int | None = None,
        on_freed: Callable[[AdapterDigest], object] | None = None,
        store: RowStore | None = None,
        base: BaseWeights | None = None,
    ) -> None:
        self._layout = layout
        self._reserved = frozenset(reserved)
        self._max_lora_rank = max_lora_rank
        self._on_freed = on_freed
        self._store = store
        self._base = base
        self._host = HostTier()
        self._size_bytes = 0
        self._digest_by_name: dict[str, AdapterDigest] = {}
        self._entries: dict[AdapterDigest, _Entry] = {}

    def prepare(
        self, path: str | Path, *, boundary: Path | None = None, must_read: bool = False, displaces: bool = False
    ) -> PreparedAdapter:
        """Read and check the PEFT folder at ``path`` and lay its rows out in pages. Changes nothing.

        With a store, what has been laid out before is only looked up, unless ``must_read``. ``boundary``: a folder inside
        which links may lead, beside the adapter's own. ``displaces``: the rows of other registered adapters that nobody
        runs with may go for these, as long as their folders are there to make them again. Raises AdapterNotFound,
        AdapterRejected with all reasons, AdapterCacheFull if the store is full, and AdapterUnavailable where the host is at
        fault.
        """
        folder = Path(path)
        if self._store is not None:
            in_use = self._entries.keys()
            file = self._store.prepare(
                folder, self._max_lora_rank, in_use, boundary=boundary, must_read=must_read, displaces=displaces
            )
            return PreparedAdapter(file.header.record, file, file.header.target_modules, folder, file.base_model, boundary)
        model = model_of(self._layout, self._base)
        adapter = read_adapter(folder, model, self._max_lora_rank, () if boundary is None else (boundary,))
        for warning in adapter.warnings:
            log.warning("adapter %s: %s", folder, warning)
        image, record = image_of(adapter, self._layout, folder)
        rows, base_model = MemoryRows(image), adapter.base_model or ""
        return PreparedAdapter(record, rows, adapter.target_modules, folder, base_model, boundary)

    def combiner(self, parts: Sequence[tuple[str, float]]) -> Callable[[], PreparedAdapter]:
        """What makes the weighted sum of registered adapters, (name, weight), on any thread; see ``combining``.

        Raises AdapterNotFound. The call raises AdapterRejected, AdapterDamaged, and what keeping the rows raises.
        """
        entries = [(name, self._entry(self.resolve(name)).prepared, weight) for name, weight in parts]

        def make() -> PreparedAdapter:
            read = []
            for name, prepared, weight in entries:
                image = np.empty((prepared.record.num_pages, self._layout.page_bytes), np.uint8)
                prepared.rows.read(0, [image])
                read.append((name, prepared.record, image, weight))
            record, image = combine(read, self._layout, self._max_lora_rank)
            modules = tuple(dict.fromkeys(m for _, prepared, _ in entries for m in prepared.target_modules))
            rows = MemoryRows(image) if self._store is None else self._store.keep(record, modules, image, self._entries.keys())
            return PreparedAdapter(record, rows, modules, Path("combined"))

        return make

    def register(self, name: str, adapter: PreparedAdapter | str | Path, *, replace: bool = False) -> AdapterDigest:
        """Serve ``adapter`` (prepared, or a folder) under ``name`` from now on.

        Raises AdapterExists if the name is the base model's, or taken and ``replace`` is False;
        InvalidRequest for an empty name; and what ``prepare`` raises.
        """
        if not name or not name.isprintable():
            raise InvalidRequest(f"the adapter's name is {name!r}; allowed: a printable text", "lora_name")
        if name in self._reserved:
            raise AdapterExists(f"{name!r} is the base model's name")
        if name in self._digest_by_name and not replace:
            raise AdapterExists(f"an adapter named {name!r} is already registered; unload it, or replace it")
        prepared = adapter if isinstance(adapter, PreparedAdapter) else self.prepare(adapter)
        digest = prepared.record.digest
        previous = self._digest_by_name.get(name)
        if previous == digest:
            return digest
        entry = self._entries.get(digest)
        if entry is None:
            entry = self._entries[digest] = _Entry(prepared)
            self._size_bytes += prepared.rows.size_bytes
        entry.names[name] = None
        entry.last_name = name
        entry.is_purged = False
        self._digest_by_name[name] = digest
        if previous is not None:
            self._drop_name(previous, name)
        return digest

    def unregister(self, name: str, *, purge: bool = False) -> AdapterDigest:
        """Forget ``name``. Its rows stay until the last request that uses them ends. Raises AdapterNotFound.

        ``purge``: when the weights are freed, their row file is deleted too, unless another name has come to use it.
        """
        digest = self.resolve(name)
        del self._digest_by_name[name]
        self._entries[digest].is_purged = purge
        self._drop_name(digest, name)
        return digest

    def resolve(self, name: str) -> AdapterDigest:
        """What ``name`` means now. Raises AdapterNotFound."""
        try:
            return self._digest_by_name[name]
        except KeyError:
            raise AdapterNotFound(f"no adapter is named {name!r}") from None

    def retain(self, digest: AdapterDigest) -> None:
        """One more request uses ``digest``: nobody deletes its rows meanwhile. Raises AdapterNotFound if it is gone."""
        entry = self._entry(digest)
        if not entry.num_users:
            entry.prepared.rows.hold()
        entry.num_users += 1

    def release(self, digest: AdapterDigest) -> None:
        """One request fewer uses it."""
        entry = self._entries[digest]
        assert entry.num_users > 0, f"adapter {digest} was released more often than retained"
        entry.num_users -= 1
        if not entry.num_users:
            entry.prepared.rows.let_go()
        self._free_if_unused(digest, entry)

    def record(self, digest: AdapterDigest) -> AdapterRecord:
        """Identity, shape and size. Raises AdapterNotFound."""
        return self._entry(digest).prepared.record

    def image(self, digest: AdapterDigest) -> np.ndarray:
        """A copy of the rows in page form: uint8 [num_pages, page_bytes]. Raises AdapterNotFound, AdapterDamaged."""
        image = np.empty((self.record(digest).num_pages, self._layout.page_bytes), np.uint8)
        self.rows(digest).read(0, [image])
        return image

    def host_image(self, digest: AdapterDigest) -> tuple[AdapterSignature, np.ndarray]:
        """Signature and a copy of the page-form image. Raises AdapterNotFound, AdapterDamaged."""
        return self.record(digest).signature, self.image(digest)

    def host_rows(self, digest: AdapterDigest) -> tuple[AdapterSignature, RowFile | MemoryRows]:
        """Signature and rows: what a worker needs to load it. Raises AdapterNotFound."""
        return self.record(digest).signature, self.rows(digest)

    def rows(self, digest: AdapterDigest) -> RowFile | MemoryRows:
        """The rows, held ready on the host from now on. Raises AdapterNotFound."""
        rows = self._entry(digest).prepared.rows
        self._host.want(digest, rows)
        return rows

    def is_on_host(self, digest: AdapterDigest) -> bool:
        """True if the rows are held ready, False if they are on the disk only."""
        return digest in self._host

    def on_host(self) -> Iterator[AdapterDigest]:
        """Those whose rows are held ready."""
        return iter(self._host)

    def path(self, digest: AdapterDigest) -> Path:
        """The folder it was read from. Raises AdapterNotFound."""
        return self._entry(digest).prepared.path

    def boundary(self, digest: AdapterDigest) -> Path | None:
        """The folder inside which its links may lead. Raises AdapterNotFound."""
        return self._entry(digest).prepared.boundary

    def is_gone(self, digest: AdapterDigest) -> bool:
        """True if its row file was deleted: another server needed the room. It has to be made again."""
        return self._entry(digest).prepared.rows.is_gone

    def close(self) -> None:
        """End whatever reads folders. Idempotent."""
        if self._store is not None:
            self._store.close()

    def discard_rows(self, digest: AdapterDigest) -> None:
        """The rows are damaged: forget them, so that ``prepare`` makes them again."""
        self._host.drop(digest)
        if self._store is not None:
            self._store.discard(digest)

    def target_modules(self, digest: AdapterDigest) -> tuple[str, ...]:
        """The modules it adapts in any layer. Raises AdapterNotFound."""
        return self._entry(digest).prepared.target_modules

    def base_model(self, digest: AdapterDigest) -> str:
        """What it says it was trained for; empty if it says nothing. Raises AdapterNotFound."""
        return self._entry(digest).prepared.base_model

    def names(self, digest: AdapterDigest) -> tuple[str, ...]:
        """Names that point at ``digest``; empty while it drains. Raises AdapterNotFound."""
        return tuple(self._entry(digest).names)

    def last_name(self, digest: AdapterDigest) -> str:
        """The latest name that pointed at it, also while it drains. Raises AdapterNotFound."""
        return self._entry(digest).last_name

    def num_users(self, digest: AdapterDigest) -> int:
        """Requests in flight that use it. Raises AdapterNotFound."""
        return self._entry(digest).num_users

    def __contains__(self, digest: object) -> bool:
        return digest in self._entries

    def __iter__(self) -> Iterator[AdapterDigest]:
        """Every digest, those that drain included."""
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def digest_by_name(self) -> Mapping[str, AdapterDigest]:
        """Every name that can be asked for. Do not change it."""
        return MappingProxyType(self._digest_by_name)

    @property
    def size_bytes(self) -> int:
        """Bytes of all images, on the disk or in memory."""
        return self._size_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of the images that are held ready."""
        return self._host.size_bytes

    def check_integrity(self) -> None:
        """Assert that names and digests agree, and that nothing without a name and a user is kept."""
        for name, digest in self._digest_by_name.items():
            assert name in self._entries[digest].names, f"{name} points at {digest}, which does not know it"
        assert self._size_bytes == sum(entry.prepared.rows.size_bytes for entry in self._entries.values())
        assert all(digest in self._entries for digest in self._host), "rows of an adapter that is gone are held"
        for digest, entry in self._entries.items():
            assert entry.prepared.record.digest == digest
            assert all(self._digest_by_name.get(name) == digest for name in entry.names), f"{digest} has a stale name"
            assert entry.names or entry.num_users > 0, f"{digest} should have been freed"

    def _entry(self, digest: AdapterDigest) -> _Entry:
        try:
            return self._entries[digest]
        except KeyError:
            raise AdapterNotFound(f"no adapter has the digest {digest}") from None

    def _drop_name(self, digest: AdapterDigest, name: str) -> None:
        entry = self._entries[digest]
        del entry.names[name]
        self._free_if_unused(digest, entry)

    def _free_if_unused(self, digest: AdapterDigest, entry: _Entry) -> None:
        if entry.names or entry.num_users:
            return
        del self._entries[digest]
        self._size_bytes -= entry.prepared.rows.size_bytes
        self._host.drop(digest)
        entry.prepared.rows.close()
        if entry.is_purged and self._store is not None:
            self._store.discard(digest)
        log.info("adapter %s (%s) is gone", entry.last_name, digest[:12])
        if self._on_freed is not None:
            self._on_freed(digest)


__all__ = ["Catalog", "PreparedAdapter"]
