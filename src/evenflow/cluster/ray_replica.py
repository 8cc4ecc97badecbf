"""One engine of a deployment, as Ray Serve starts, watches, counts and ends it.

Ray Serve decides how many there are and on which machine; requests do not pass through it. They come over the connections of
ReplicaDoor, because an item of a stream through Ray's handles costs more than a step of a small model.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from evenflow.base.logs import configure_logging
from evenflow.cluster.adapter_table import AdapterEntry
from evenflow.cluster.book_door import BookDoor
from evenflow.cluster.directory import Member
from evenflow.cluster.plan import SHARED_POLICY, DeploymentPlan
from evenflow.cluster.ray_directory import RayDirectory
from evenflow.cluster.ray_package import import_ray
from evenflow.cluster.replica_door import ReplicaDoor
from evenflow.cluster.replica_member import ReplicaMember
from evenflow.cluster.scaling import METRIC
from evenflow.fairness.policies.book_socket import SCHEME
from evenflow.serving.client.engine_client import EngineClient

log = logging.getLogger("evenflow.cluster")


class EngineReplica:
    """The user class of the deployment of engines."""

    async def __init__(self, plan: DeploymentPlan) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        """Raises what the engine fails of."""
        ray, serve = import_ray()
        configure_logging(plan.engine.log_level, form=plan.engine.log_format)
        self._plan = plan
        self._name = str(serve.get_replica_context().replica_id.unique_id)
        self._folder = Path(tempfile.mkdtemp(prefix="evenflow-book-"))
        directory = RayDirectory(plan.ray.app_name, self._name)
        self._book = BookDoor(directory.exchange)
        config = plan.engine
        if config.policy == SHARED_POLICY:
            await self._book.open(self._folder / "book.sock")
            config = replace(config, policy=f"{SHARED_POLICY}:{SCHEME}{self._folder / 'book.sock'}")
        self._engine = EngineClient(config)
        try:
            await self._engine.wait_until_ready()
            self._door = ReplicaDoor(self._engine)
            host, port = await self._door.open(ray.util.get_node_ip_address())
            initial = {name: AdapterEntry(str(folder)) for name, folder in plan.adapters.items()}
            self._member = ReplicaMember(self._engine, directory, Member(self._name, host, port), initial)
            await self._join()
        except BaseException:
            await self._end()
            raise

    async def check_health(self) -> None:
        """Ray Serve asks now and then, and starts another replica if this raises."""
        if not self._engine.is_alive:
            raise RuntimeError(self._engine.trouble)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaler is told."""
        return {METRIC: float(self._door.waiting_tokens)}

    async def __del__(self) -> None:
        """Ray Serve ends this replica: nothing new, what runs comes to its end, then the engine goes."""
        if hasattr(self, "_member"):
            await self._member.leave()
            if not await self._door.drain(self._plan.server.drain_timeout_s):
                log.warning("%d requests did not finish in time and are cut off", self._door.num_streams)
            await self._door.close()
        await self._end()

    async def _join(self) -> None:
        """The directory may be on its way up again."""
        for _ in range(20):
            try:
                return await self._member.join()
            except ConnectionError as error:
                log.warning("%s", error)
                await asyncio.sleep(0.5)
        raise RuntimeError("the directory of this deployment cannot be reached")

    async def _end(self) -> None:
        await self._engine.close()
        self._book.close()
        shutil.rmtree(self._folder, ignore_errors=True)
