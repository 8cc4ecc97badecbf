"""What each client and each adapter has had, for the metrics: bounded in number, whatever names callers invent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from evenflow.fairness.books.cost import Service
from evenflow.integrations.vllm.life import Life
from evenflow.integrations.vllm.tally import Tally, numbers_of

OTHER = "other"
"""The label of all who have no series of their own."""


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
        return {**{name: numbers_of(tally) for name, tally in self._by_name.items()}, OTHER: numbers_of(self._other)}

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

    def arrived(self, life: Life) -> None:
        """It waits."""
        adapter = life.view.adapter
        adapters = () if adapter is None else (self.adapters.enter(adapter),)
        life.tallies = (self.clients.enter(life.view.client_id), *adapters)
        for tally in life.tallies:
            tally.num_waiting += 1

    @staticmethod
    def started(life: Life) -> None:
        """It runs."""
        for tally in life.tallies:
            tally.num_waiting -= 1
            tally.num_running += 1

    @staticmethod
    def preempted(life: Life) -> None:
        """It waits again."""
        for tally in life.tallies:
            tally.num_waiting += 1
            tally.num_running -= 1
            tally.num_preemptions += 1

    @staticmethod
    def answered(life: Life, now_s: float) -> None:
        """Its first token is there."""
        for tally in life.tallies:
            tally.num_answered += 1
            tally.ttft_s += now_s - life.view.arrival_s

    @staticmethod
    def received(life: Life, service: Service) -> None:
        """It received this."""
        for tally in life.tallies:
            tally.prompt_tokens += service.prefill_tokens
            tally.completion_tokens += service.decode_tokens
            tally.cached_tokens += service.cached_tokens
            tally.recomputed_tokens += service.recomputed_tokens

    @staticmethod
    def ended(life: Life) -> None:
        """It is gone."""
        for tally in life.tallies:
            tally.num_ended += 1
            if life.is_waiting:
                tally.num_waiting -= 1
            else:
                tally.num_running -= 1

    def restart(self) -> None:
        """The books begin anew: nobody waits or runs until told so. Counters stay."""
        for tallies in (self.clients, self.adapters):
            for tally in (*tallies.by_name.values(), tallies.other):
                tally.num_waiting = tally.num_running = 0

    def check_integrity(self, lives: Iterable[Life]) -> None:
        """Assert that gauges are the numbers of lives."""
        lives = list(lives)
        for tallies, counted in ((self.clients, lives), (self.adapters, [life for life in lives if life.view.adapter])):
            everybody = [*tallies.by_name.values(), tallies.other]
            assert sum(tally.num_waiting for tally in everybody) == sum(life.is_waiting for life in counted)
            assert sum(tally.num_running for tally in everybody) == sum(not life.is_waiting for life in counted)
            assert all(min(numbers_of(tally)) >= 0 for tally in everybody)
