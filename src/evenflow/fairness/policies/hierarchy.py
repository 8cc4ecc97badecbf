"""Fair shares at every level of a hierarchy: tier, then tenant, then user; or any other path that a client has.

A Level at every inner node: a tier competes with tiers, a tenant with the tenants of its tier, a user with the
users of its tenant. Each node's counter rises by the service received below it, divided by its own weight, so a
tier of weight 4 is due four times the service of a tier of weight 1 however many clients it has. The bound of
VTC holds between the children of every node. This is hierarchical fair queueing with VTC's lift at each node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from evenflow.fairness.books.bill import Bill, ticks
from evenflow.fairness.books.cost import CostFunction
from evenflow.fairness.books.level import Level
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights, check_tiers, weight_lookup
from evenflow.fairness.policies.prediction import LengthPredictor, PredictedVTC, parse_predictor
from evenflow.fairness.registry import PolicySettings
from evenflow.fairness.schedulable import Schedulable

Path = tuple[str, ...]


class Tree(Level):
    """Levels at the inner nodes of a tree whose leaves are competitors. A Level from outside.

    ``path_of`` gives the path of a competitor, ``depth`` names from below the root down to the competitor's own name.
    It is asked when the competitor joins; from then on the competitor has its place until it neither waits nor is
    held, or ``move`` is called. ``weight_of`` gives the weight of a node by its path.
    A node that its parent has forgotten is forgotten with everything below it.
    """

    def __init__(self, depth: int, path_of: Callable[[str], Path], weight_of: Callable[[Path], float]) -> None:
        super().__init__()
        self._depth = depth
        self._path_of = path_of
        self._weight_of = weight_of
        self._places: dict[str, Path] = {}
        """Of those that wait or are held."""
        self._levels: dict[Path, Level] = {}
        self._bills: dict[str, list[Bill]] = {}
        """Open ones, by who pays."""
        self._open(())

    @property
    def virtual_time(self) -> float:
        """The root's."""
        return self._levels[()].virtual_time

    @property
    def counters(self) -> Mapping[str, float]:
        """Of the competitors, each in the level of its parent. A new mapping."""
        leaves = [level.counters for above, level in self._levels.items() if len(above) == self._depth - 1]
        return {name: counter for counters in leaves for name, counter in counters.items()}

    def standing(self, name: str) -> tuple[int, ...]:
        """What the nodes on the path of one that waits or is held have received, from below the root down to it, in ticks."""
        path = self._places[name]
        return tuple(self._levels[path[:depth]].received(path[depth]) for depth in range(self._depth))

    def join(self, name: str) -> None:
        """Lift it among its siblings, and its ancestors as far as they had nothing waiting."""
        self._take_place(name)
        for above, child in reversed(self._steps(name)):
            level = self._levels[above]
            was_waiting = len(level) > 0
            level.join(child)
            if was_waiting:
                break

    def rejoin(self, name: str) -> None:
        """Let it compete again, and its ancestors, without a lift."""
        for above, child in self._steps(name):
            self._levels[above].rejoin(child)

    def leave(self, name: str) -> None:
        """Take it out, and its ancestors as far as they have nothing else waiting."""
        for above, child in reversed(self._steps(name)):
            level = self._levels[above]
            level.leave(child)
            if len(level) > 0:
                break
        self._give_up_place(name)

    def hold(self, name: str) -> None:
        """Remember it and its ancestors."""
        for above, child in self._steps(name):
            self._levels[above].hold(child)

    def release(self, name: str) -> None:
        """One hold less, on it and its ancestors: from below, because an ancestor may then be forgotten."""
        for above, child in reversed(self._steps(name)):
            self._levels[above].release(child)
        self._give_up_place(name)

    def move(self) -> None:
        """Ask ``path_of`` again for all that wait or are held. One that moves is lifted like a newcomer where it comes to."""
        for name, old in list(self._places.items()):
            if self._path_of(name) == old:
                continue
            level = self._levels[old[:-1]]
            was_waiting, num_held = name in level, level.num_held(name)
            bills = [(bill, bill.in_advance) for bill in self._bills.get(name, [])]
            for bill, _ in bills:
                self.bring(bill, bill.service, 0.0)
            for _ in range(num_held):
                self.release(name)
            if was_waiting:
                self.leave(name)
            self.join(name)
            for _ in range(num_held):
                self.hold(name)
            for bill, in_advance in bills:
                bill.weights = self._weights(name)
                bill.received = [ticks(bill.service, weight) for weight in bill.weights]
                self.bring(bill, bill.service, in_advance)
            if not was_waiting:
                self.leave(name)

    def open(self, name: str, weight: float) -> Bill:
        """A bill that every node on the path of ``name`` pays, by its own weight; ``weight`` is not asked."""
        bill = Bill(name, self._weights(name))
        self._bills.setdefault(name, []).append(bill)
        return bill

    def bring(self, bill: Bill, service: float, in_advance: float) -> None:
        """Raise or lower the counters on the path, each by the change over the weight of the node."""
        advanced = ticks(in_advance) - ticks(bill.in_advance)
        bill.service, bill.in_advance = service, in_advance
        for depth, (above, child) in enumerate(self._steps(bill.name)):
            weight = bill.weights[depth]
            received, ahead = ticks(service, weight), ticks(in_advance, weight)
            self._levels[above].shift(child, received - bill.received[depth], ahead - bill.ahead[depth], advanced)
            bill.received[depth], bill.ahead[depth] = received, ahead

    def finish(self, bill: Bill, service: float) -> None:
        """The bill is final."""
        self.bring(bill, service, 0.0)
        bills = self._bills[bill.name]
        bills.remove(bill)
        if not bills:
            del self._bills[bill.name]

    def in_advance(self, name: str) -> float:
        """The most that a node on its path is charged ahead of service."""
        return max(self._levels[above].in_advance(child) for above, child in self._steps(name))

    def least(self) -> str | None:
        """The least child of the least child of ... of the root."""
        path: Path = ()
        name: str | None = None
        for _ in range(self._depth):
            name = self._levels[path].least()
            if name is None:
                return None
            path = (*path, name)
        return name

    def gap(self, name: str, other: str) -> float:
        """Between the branches of the two, in the level where their paths part."""
        for (above, mine), (_, theirs) in zip(self._steps(name), self._steps(other), strict=True):
            if mine != theirs:
                return self._levels[above].gap(mine, theirs)
        return 0.0

    def nearest(self, within: float, at_most: int) -> list[str]:
        """Only the least: a distance between branches has no meaning."""
        least = self.least()
        return [] if least is None else [least]

    def __contains__(self, name: object) -> bool:
        path = self._places.get(str(name))
        return path is not None and path[-1] in self._levels[path[:-1]]

    def __iter__(self) -> Iterator[str]:
        return (name for above, level in self._levels.items() if len(above) == self._depth - 1 for name in level)

    def __len__(self) -> int:
        return sum(len(level) for above, level in self._levels.items() if len(above) == self._depth - 1)

    def check_integrity(self, waiting: Collection[str], num_held: Mapping[str, int]) -> None:
        """Assert the books of every level against those that wait and are held below it."""
        assert set(self._places) == {*waiting, *num_held}, "a place is kept for one that neither waits nor is held, or missing"
        wanted: dict[Path, tuple[set[str], dict[str, int]]] = {path: (set(), {}) for path in self._levels}
        for name in waiting:
            for above, child in self._steps(name):
                wanted[above][0].add(child)
        for name, count in num_held.items():
            for above, child in self._steps(name):
                held = wanted[above][1]
                held[child] = held.get(child, 0) + count
        for path, (names, held) in wanted.items():
            self._levels[path].check_integrity(names, held)
        for path in self._levels:
            assert not path or path[-1] in self._levels[path[:-1]].counters, "a level was kept for nothing"

    def _steps(self, name: str) -> list[tuple[Path, str]]:
        """(path of a node, its child on the way), from the root down to the parent of the competitor. Makes missing levels."""
        path = self._places[name]
        steps = [(path[:depth], path[depth]) for depth in range(self._depth)]
        for above, _ in steps:
            if above not in self._levels:
                self._open(above)
        return steps

    def _take_place(self, name: str) -> None:
        if name not in self._places:
            path = self._path_of(name)
            assert len(path) == self._depth
            assert path[-1] == name, f"the path of {name!r} ends in {path[-1]!r}"
            self._places[name] = path

    def _weights(self, name: str) -> tuple[float, ...]:
        return tuple(self._weight_of((*above, child)) for above, child in self._steps(name))

    def _give_up_place(self, name: str) -> None:
        path = self._places[name]
        level = self._levels.get(path[:-1])
        if level is None or not (name in level or level.num_held(name)):
            del self._places[name]

    def _open(self, path: Path) -> None:
        self._levels[path] = Level(on_forgotten=lambda child: self._drop((*path, child)))

    def _drop(self, path: Path) -> None:
        level = self._levels.pop(path, None)
        if level is not None:
            for child in level.counters:
                self._drop((*path, child))


class HierarchicalVTC(PredictedVTC):
    """Predicted VTC over (tier, tenant, client). The tenant of client ``acme/ann`` is ``acme``; of ``bob``, ``bob``.

    The bound of predicted VTC, U + B, holds between the children of each node. B is what is charged for predictions below
    any one of them.
    """

    def __init__(
        self,
        queues: ClientQueues,
        weights: Weights | None = None,
        cost: CostFunction | None = None,
        predictor: LengthPredictor | None = None,
        *,
        tier_by_client: Mapping[str, str] | None = None,
        weight_by_tier: Mapping[str, float] | None = None,
    ) -> None:
        """``weights`` are the own ones of clients and tenants, without their tier's. The mappings are read at every use."""
        weight = weight_lookup(weights)
        tiers = {} if tier_by_client is None else tier_by_client
        tier_weights = {} if weight_by_tier is None else weight_by_tier
        check_tiers(tiers, tier_weights)

        def path_of(client_id: str) -> Path:
            tenant = client_id.partition("/")[0]
            return tiers.get(client_id, tiers.get(tenant, "")), tenant, client_id

        def weight_of(path: Path) -> float:
            return tier_weights.get(path[0], 1.0) if len(path) == 1 else weight(path[-1])

        self._tree = Tree(3, path_of, weight_of)
        super().__init__(queues, None, cost, predictor, self._tree)

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> HierarchicalVTC:
        """``hierarchy[:PREDICTOR]``, as ``vtc-predict``."""
        return cls(
            settings.queues,
            settings.own_weights,
            settings.cost,
            parse_predictor(argument),
            tier_by_client=settings.tier_by_client,
            weight_by_tier=settings.weight_by_tier,
        )

    def shares_changed(self) -> None:
        """Clients that are in another tier now move there."""
        self._tree.move()

    def victim(self, running: Sequence[Schedulable]) -> Schedulable | None:
        """The newest request of the richest client of the richest tenant of the richest tier."""
        return max(
            reversed(running), key=lambda request: (self._tree.standing(request.client_id), request.arrival_s), default=None
        )
