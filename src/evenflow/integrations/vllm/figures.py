"""What each client and each adapter has had, for the metrics: bounded in number, whatever names callers invent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields

from evenflow.fairness.books.cost import Service
from evenflow.fairness.schedulable import Schedulable
from evenflow.integrations.vllm.life import Life

OTHER = "other"
"""The label of all who have no series of their own."""


@dataclass(slots=True)
class Tally:
    """Counters and gauges of one name."""

    prompt_tokens: int = 0
    """Computed, not found in the cache."""
    completion_tokens: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    num_ended: int = 0
    num_preemptions: int = 0
    num_answered: int = 0
    ttft_s: float = 0.0
    """Seconds from arrival in the engine to the first token, summed over those answered."""
    num_waiting: int = 0
    num_running: int = 0

    def add(self, other: Tally) -> None:
        """Take over another one's numbers."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Tallies:
    """By name, for the ``most`` names that were active last; the sum of all others under ``OTHER``, which never falls."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_name: OrderedDict[str, Tally] = OrderedDict()
        self._other = Tally()

    def enter(self, name: str) -> Tally:
        """A request of ``name`` arrives: give it a place of its own if one is free or idle."""
        tally = self._by_name.get(name)
        if tally is not None:
            self._by_name.move_to_end(name)
            return tally
        if len(self._by_name) >= self._most and not self._make_place():
            return self._other
        tally = self._by_name[name] = Tally()
        return tally

    def snapshot(self) -> dict[str, tuple[float, ...]]:
        """The numbers of every name, in the order of Tally's fields."""
        return {**{name: astuple(tally) for name, tally in self._by_name.items()}, OTHER: astuple(self._other)}

    @property
    def by_name(self) -> Mapping[str, Tally]:
        """Read only."""
        return self._by_name

    @property
    def other(self) -> Tally:
        """Everybody else's."""
        return self._other

    def _make_place(self) -> bool:
        """Fold the name that has been idle for longest into the others."""
        for name, tally in self._by_name.items():
            if not tally.num_waiting and not tally.num_running:
                self._other.add(tally)
                del self._by_name[name]
                return True
        return False


class Figures:
    """Told of every turn in a request's life. A request is counted where it was counted when it arrived."""

    def __init__(self, most_names: int) -> None:
        self.clients = Tallies(most_names)
        self.adapters = Tallies(most_names)
        self._tallies: dict[object, tuple[Tally, ...]] = {}

    def arrived(self, view: Schedulable) -> None:
        """It waits."""
        adapters = () if view.adapter is None else (self.adapters.enter(view.adapter),)
        tallies = self._tallies[view] = (self.clients.enter(view.client_id), *adapters)
        for tally in tallies:
            tally.num_waiting += 1

    def started(self, view: Schedulable) -> None:
        """It runs."""
        for tally in self._tallies[view]:
            tally.num_waiting -= 1
            tally.num_running += 1

    def preempted(self, view: Schedulable) -> None:
        """It waits again."""
        for tally in self._tallies[view]:
            tally.num_waiting += 1
            tally.num_running -= 1
            tally.num_preemptions += 1

    def answered(self, view: Schedulable, now_s: float) -> None:
        """Its first token is there."""
        for tally in self._tallies[view]:
            tally.num_answered += 1
            tally.ttft_s += now_s - view.arrival_s

    def received(self, view: Schedulable, service: Service) -> None:
        """It received this."""
        for tally in self._tallies[view]:
            tally.prompt_tokens += service.prefill_tokens
            tally.completion_tokens += service.decode_tokens
            tally.cached_tokens += service.cached_tokens
            tally.recomputed_tokens += service.recomputed_tokens

    def ended(self, view: Schedulable, was_waiting: bool) -> None:
        """It is gone: nothing more will be told of it."""
        for tally in self._tallies.pop(view):
            tally.num_ended += 1
            if was_waiting:
                tally.num_waiting -= 1
            else:
                tally.num_running -= 1

    def restart(self) -> None:
        """The books begin anew: nobody waits or runs until told so. Counters stay."""
        self._tallies.clear()
        for tallies in (self.clients, self.adapters):
            for tally in (*tallies.by_name.values(), tallies.other):
                tally.num_waiting = tally.num_running = 0

    def check_integrity(self, lives: Iterable[Life]) -> None:
        """Assert that gauges are the numbers of lives."""
        lives = list(lives)
        assert self._tallies.keys() == {life.view for life in lives}
        for tallies, counted in ((self.clients, lives), (self.adapters, [life for life in lives if life.view.adapter])):
            everybody = [*tallies.by_name.values(), tallies.other]
            assert sum(tally.num_waiting for tally in everybody) == sum(life.is_waiting for life in counted)
            assert sum(tally.num_running for tally in everybody) == sum(not life.is_waiting for life in counted)
            assert all(min(astuple(tally)) >= 0 for tally in everybody)
