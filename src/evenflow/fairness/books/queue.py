"""Who waits, in which order: one FIFO per client and the set of clients that have something waiting.

The queues are shared by a scheduler (which pushes and removes) and its policy (which looks at heads).
Pure bookkeeping: no order between clients is decided here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice

from evenflow.fairness.schedulable import Schedulable


class ClientQueues:
    """One FIFO of waiting requests per client. O(1) push, remove and head; idle clients take no memory."""

    def __init__(self) -> None:
        self._queues: dict[str, OrderedDict[Hashable, Schedulable]] = {}
        self._num_waiting = 0

    def push(self, request: Schedulable) -> bool:
        """Append to its client's queue. True if the client had nothing waiting."""
        queue = self._queues.get(request.client_id)
        was_idle = queue is None
        if queue is None:
            queue = self._queues[request.client_id] = OrderedDict()
        assert request.request_id not in queue, f"request {request.request_id} is queued already"
        queue[request.request_id] = request
        self._num_waiting += 1
        return was_idle

    def push_front(self, request: Schedulable) -> bool:
        """Put a preempted request at the head of its client's queue. True if the client had nothing waiting."""
        was_idle = self.push(request)
        self._queues[request.client_id].move_to_end(request.request_id, last=False)
        return was_idle

    def remove(self, request: Schedulable) -> bool:
        """Take a request out, wherever it stands. True if its client has nothing waiting any more."""
        queue = self._queues[request.client_id]
        del queue[request.request_id]
        self._num_waiting -= 1
        if not queue:
            del self._queues[request.client_id]
            return True
        return False

    def head(self, client_id: str) -> Schedulable | None:
        """The client's oldest waiting request, or None."""
        queue = self._queues.get(client_id)
        return next(iter(queue.values())) if queue else None

    def waiting(self, client_id: str) -> Iterator[Schedulable]:
        """The client's waiting requests, oldest first."""
        return iter(self._queues.get(client_id, {}).values())

    def interleaved(self, client_ids: Sequence[str], at_most: int) -> list[Schedulable]:
        """Up to ``at_most`` requests of these clients: the oldest of each in their order, then the second of each, ..."""
        found: list[Schedulable] = []
        lines = [iter(self._queues[client_id].values()) for client_id in client_ids if client_id in self._queues]
        while lines and len(found) < at_most:
            heads = [(line, next(line, None)) for line in lines]
            found += [head for _, head in heads if head is not None]
            lines = [line for line, head in heads if head is not None]
        return found[:at_most]

    def num_waiting(self, client_id: str | None = None) -> int:
        """Waiting requests of one client, or of all."""
        return self._num_waiting if client_id is None else len(self._queues.get(client_id, ()))

    @property
    def clients(self) -> Iterator[str]:
        """Clients that have something waiting, in no particular order."""
        return iter(self._queues)

    def first_clients(self, at_most: int) -> list[str]:
        """Up to ``at_most`` clients that have something waiting, those first that have had for longest."""
        return list(islice(self._queues, at_most))

    @property
    def num_clients(self) -> int:
        """How many clients have something waiting."""
        return len(self._queues)

    def __contains__(self, client_id: object) -> bool:
        return client_id in self._queues

    def check_integrity(self) -> None:
        """Assert that no queue is empty and the total is right."""
        assert all(self._queues.values()), "an empty queue was kept"
        assert self._num_waiting == sum(map(len, self._queues.values())), "the number of waiting requests is wrong"
