"""Which adapters the running requests use: counted once, for every policy that cares."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator

from evenflow.fairness.schedulable import Schedulable


class AdaptersInUse:
    """Distinct adapters of running requests. The base model is no adapter and never in it. O(1) per call."""

    def __init__(self) -> None:
        self._num_using: dict[str, int] = {}
        self._adapter_of: dict[Hashable, str | None] = {}

    def start(self, request: Schedulable) -> None:
        """The request runs."""
        adapter = request.adapter
        self._adapter_of[request.request_id] = adapter
        if adapter is not None:
            self._num_using[adapter] = self._num_using.get(adapter, 0) + 1

    def stop(self, request: Schedulable) -> None:
        """It runs no more. Nothing happens if it did not run."""
        adapter = self._adapter_of.pop(request.request_id, None)
        if adapter is None:
            return
        left = self._num_using[adapter] - 1
        if left:
            self._num_using[adapter] = left
        else:
            del self._num_using[adapter]

    def __contains__(self, adapter: object) -> bool:
        return adapter in self._num_using

    def __iter__(self) -> Iterator[str]:
        return iter(self._num_using)

    def __len__(self) -> int:
        return len(self._num_using)

    def check_integrity(self, admitted: Collection[Hashable] | None = None) -> None:
        """Assert the counts, and that only requests of ``admitted`` run."""
        used = [adapter for adapter in self._adapter_of.values() if adapter is not None]
        assert self._num_using == {adapter: used.count(adapter) for adapter in used}
        assert admitted is None or self._adapter_of.keys() <= set(admitted)
