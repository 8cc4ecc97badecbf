"""The directory as a named Ray actor, and how fronts, replicas and their engines reach it.

The actor is detached and restarted by Ray wherever it dies; what it held is given back by whoever speaks to it next.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from evenflow.base.errors import EvenFlowError
from evenflow.base.version import __version__
from evenflow.cluster.adapter_table import AdapterEntry, AdapterTable
from evenflow.cluster.directory import Directory, FrontWord, Member, ReplicaWord
from evenflow.cluster.minute_log import Charges
from evenflow.cluster.ray_package import import_ray
from evenflow.fairness.books.exchange import Answer, Batch

NAMESPACE = "evenflow"
CALL_TIMEOUT_S = 2.0


class DirectoryActor:
    """A Directory with a clock; its methods are what Ray calls."""

    def __init__(self, version: str) -> None:
        self._directory = Directory(version)

    def replica_speaks(self, member: Member | None, name: str, version: str, table_version: int) -> ReplicaWord:
        """See Directory."""
        return self._directory.replica_speaks(member, name, version, table_version, time.monotonic())

    def front_speaks(
        self, name: str, address: str, version: str, table_version: int, charges: Charges, number: int
    ) -> FrontWord:
        """See Directory."""
        now_s = time.monotonic()
        return self._directory.front_speaks(name, address, version, table_version, charges, number, now_s)

    def give(self, table: AdapterTable) -> None:
        """See Directory."""
        self._directory.give(table)

    def change(self, name: str, entry: AdapterEntry | None, known_version: int) -> AdapterTable | None:
        """See Directory."""
        return self._directory.change(name, entry, known_version)

    def exchange(self, server: str, batch: Batch) -> Answer:
        """See Directory."""
        return self._directory.exchange(server, batch, time.monotonic())

    def status(self) -> dict[str, Any]:
        """Fronts' addresses, replicas and counters, for reports and tests."""
        now_s = time.monotonic()
        return {
            "fronts": self._directory.fronts(now_s),
            "replicas": [member.name for member in self._directory.members(now_s)],
            "counters": self._directory.counters(),
        }


def actor_name(app_name: str) -> str:
    """Name of the directory of a deployment."""
    return f"directory-of-{app_name}"


def directory_actor(app_name: str) -> Any:  # Any: ray's ActorHandle
    """The deployment's directory; started if it does not run."""
    ray, _ = import_ray()
    return (
        ray.remote(DirectoryActor)
        .options(
            name=actor_name(app_name),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            runtime_env=None,
        )
        .remote(__version__)
    )


class RayDirectory:
    """The directory, as one member of the deployment reaches it. Raises ConnectionError while it is away."""

    def __init__(self, app_name: str, name: str) -> None:
        self._app_name = app_name
        self._name = name
        self._actor = directory_actor(app_name)
        self.address = ""
        """Where this front listens."""

    async def replica_speaks(self, member: Member | None, table_version: int) -> ReplicaWord:
        """See Directory.replica_speaks."""
        word: ReplicaWord = await self._call("replica_speaks", member, self._name, __version__, table_version)
        return word

    async def front_speaks(self, table_version: int, charges: Charges, number: int) -> FrontWord:
        """See Directory.front_speaks."""
        arguments = (self._name, self.address, __version__, table_version, charges, number)
        word: FrontWord = await self._call("front_speaks", *arguments)
        return word

    async def give(self, table: AdapterTable) -> None:
        """See Directory.give."""
        await self._call("give", table)

    async def change(self, name: str, entry: AdapterEntry | None, known_version: int) -> AdapterTable | None:
        """See Directory.change."""
        table: AdapterTable | None = await self._call("change", name, entry, known_version)
        return table

    async def exchange(self, server: str, batch: Batch) -> Answer:
        """See Directory.exchange."""
        answer: Answer = await self._call("exchange", server, batch)
        return answer

    async def _call(self, method: str, *arguments: object) -> Any:  # Any: what the method returns
        ray, _ = import_ray()
        try:
            return await asyncio.wait_for(getattr(self._actor, method).remote(*arguments), CALL_TIMEOUT_S)
        except TimeoutError:
            raise ConnectionError("the directory does not answer") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EvenFlowError):
                raise error.cause from None
            raise ConnectionError(f"the directory failed: {error.cause!r}") from None
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.ActorDiedError):  # killed for good: another one takes its place
                self._actor = directory_actor(self._app_name)
            raise ConnectionError(f"the directory is away: {type(error).__name__}") from None
