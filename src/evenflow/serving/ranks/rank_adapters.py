"""The adapters that a tensor-parallel rank may be told to load: its shard of each, by digest.

Names and users are rank 0's business; here a digest is held from the moment it is prepared until it is forgotten.
"""

from __future__ import annotations

import threading
from pathlib import Path

import zmq

from evenflow.base.errors import AdapterNotFound, AdapterRejected, EvenFlowError
from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.adapters.row_file import MemoryRows, RowFile
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.ranks.rank_messages import Prepare, Prepared, Refused, encoder, prepare_decoder


class RankAdapters:
    """Owns the rank's catalog. ``serve`` runs on a thread of its own, everything else on the one that computes."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._source_by_digest: dict[AdapterDigest, tuple[Path, Path | None]] = {}
        self._lock = threading.Lock()

    def host_rows(self, digest: AdapterDigest) -> tuple[AdapterSignature, RowFile | MemoryRows]:
        """What a worker needs to load it."""
        try:
            return self._catalog.host_rows(digest)
        except AdapterNotFound:
            # Forgotten by one name while another was being given to the same weights.
            path, boundary = self._source_by_digest[digest]
            prepared = self._catalog.prepare(path, boundary=boundary)
            with self._lock:
                self._catalog.register(digest, prepared, replace=True)
            return self._catalog.host_rows(digest)

    def forget(self, digest: str) -> None:
        """Nothing will load it again, unless it is prepared again."""
        with self._lock:
            if digest in self._catalog:
                self._catalog.unregister(digest)

    def serve(self, socket: zmq.Socket) -> None:
        """Answer every Prepare; never returns."""
        while True:
            request = prepare_decoder.decode(socket.recv())
            try:
                answer: Prepared | Refused = self._prepare(request)
            except Exception as error:  # whatever it is, it must not leave rank 0 waiting
                name = type(error).__name__ if isinstance(error, EvenFlowError) else "AdapterError"
                reasons = list(error.reasons) if isinstance(error, AdapterRejected) else []
                answer = Refused(name, str(error), reasons)
            socket.send(encoder.encode(answer))

    def _prepare(self, request: Prepare) -> Prepared:
        for digest in request.discarded:
            self._catalog.discard_rows(AdapterDigest(digest))
        boundary = Path(request.boundary) if request.boundary else None
        prepared = self._catalog.prepare(request.path, boundary=boundary, must_read=request.must_read)
        digest = prepared.record.digest
        self._source_by_digest[digest] = Path(request.path), boundary
        with self._lock:
            self._catalog.register(digest, prepared, replace=True)
        return Prepared(digest, prepared.record.num_pages)


__all__ = ["RankAdapters"]
