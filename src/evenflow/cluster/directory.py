"""Where the members of one deployment find each other: replicas and their addresses, adapters, counters, minutes.

The only state that a deployment shares. It lives in one process, a Ray actor, and every part of it can be lost: members speak
to it a few times a second and say again what they know (addresses, a newer table, counters), and go on without it meanwhile.
No wire and no Ray here; times are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from evenflow.base.errors import ConfigError
from evenflow.cluster.adapter_table import AdapterEntry, AdapterTable
from evenflow.cluster.minute_log import Charges, MinuteLog
from evenflow.fairness.books.counter_book import CounterBook
from evenflow.fairness.books.exchange import Answer, Batch

MEMBER_TTL_S = 10.0
"""A replica that is silent for longer is not told to fronts any more; a broken connection tells them sooner."""


@dataclass(frozen=True, slots=True)
class Member:
    """A replica that takes requests."""

    name: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ReplicaWord:
    """What a replica hears when it speaks."""

    table: AdapterTable | None
    """If it is newer than the replica's."""
    wants_table: bool = False
    """The replica's is newer: it should give it."""


@dataclass(frozen=True, slots=True)
class FrontWord:
    """What a front hears when it speaks."""

    members: tuple[Member, ...]
    table: AdapterTable | None
    wants_table: bool = False
    charges: Charges = field(default_factory=dict)
    """What other fronts have charged to clients' minutes since this one last spoke."""


class Directory:
    """Owns that state. ``version``: of EvenFlow; members of another one are refused."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._members: dict[str, tuple[Member, float]] = {}
        self._fronts: dict[str, tuple[str, float]] = {}
        self._table = AdapterTable()
        self._counters = CounterBook()
        self._minutes = MinuteLog()

    def replica_speaks(self, member: Member | None, name: str, version: str, table_version: int, now_s: float) -> ReplicaWord:
        """Note that it lives; ``member`` None: it takes no requests now. Raises ConfigError for a wrong version."""
        self._check_version(name, version)
        if member is None:
            self._members.pop(name, None)
        else:
            self._members[name] = (member, now_s)
        newer = self._table if self._table.version > table_version else None
        return ReplicaWord(newer, table_version > self._table.version)

    def front_speaks(
        self, name: str, address: str, version: str, table_version: int, charges: Charges, number: int, now_s: float
    ) -> FrontWord:
        """Note what it charged, and tell it what others did. Raises ConfigError for a wrong version."""
        self._check_version(name, version)
        self._fronts[name] = (address, now_s)
        heard = self._minutes.exchange(name, number, charges, now_s)
        newer = self._table if self._table.version > table_version else None
        return FrontWord(self.members(now_s), newer, table_version > self._table.version, heard)

    def members(self, now_s: float) -> tuple[Member, ...]:
        """Replicas that take requests and were heard of lately."""
        return tuple(member for member, heard_s in self._members.values() if now_s - heard_s <= MEMBER_TTL_S)

    def fronts(self, now_s: float) -> dict[str, str]:
        """Where each front that was heard of lately listens; "" for those behind another door."""
        return {name: address for name, (address, heard_s) in self._fronts.items() if now_s - heard_s <= MEMBER_TTL_S}

    def give(self, table: AdapterTable) -> None:
        """A member's table, taken over if it is newer."""
        if table.version > self._table.version:
            self._table = table

    def change(self, name: str, entry: AdapterEntry | None, known_version: int) -> AdapterTable | None:
        """Change the table, and return it. None, and nothing happens, if the caller's is newer: ``give`` it first."""
        if known_version > self._table.version:
            return None
        self._table = self._table.changed(name, entry)
        return self._table

    def exchange(self, server: str, batch: Batch, now_s: float) -> Answer:
        """Shared counters: see CounterBook."""
        return self._counters.exchange(server, batch, now_s)

    def counters(self) -> dict[str, float]:
        """Shared counter by client."""
        return self._counters.counters()

    def _check_version(self, name: str, version: str) -> None:
        if version != self._version:
            raise ConfigError(
                f"{name} runs EvenFlow {version} and this deployment {self._version}; install the same version on every node"
            )
