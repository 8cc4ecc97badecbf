"""What is looked at before anything is deployed, so that what ran before goes on if it cannot be: nodes, room, model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.base.version import __version__
from evenflow.cluster.plan import SHARED_POLICY, DeploymentPlan
from evenflow.cluster.ray_package import import_ray
from evenflow.serving.config.engine_config import EngineConfig

log = logging.getLogger("evenflow.cluster")

LOOK_TIMEOUT_S = 60.0
TRIAL_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node as a deployment would find it."""

    node: str
    evenflow: str | None
    """Version; None: it cannot be imported there."""
    python: str
    has_model: bool


def check_cluster(plan: DeploymentPlan) -> None:
    """Raise ConfigError, in one sentence, if the connected cluster cannot run ``plan``."""
    ray, _ = import_ray()
    check_room(plan, ray.cluster_resources())
    check_nodes(plan, look_at_nodes(plan.engine.model))


def check_room(plan: DeploymentPlan, resources: Mapping[str, float]) -> None:
    """Raise ConfigError unless all engines fit the cluster, whatever runs on it now."""
    bounds = plan.ray.bounds()
    count = plan.ray.replicas if bounds is None else bounds[0]
    for kind, each in (("CPU", plan.ray.cpus_per_replica), ("GPU", plan.gpus_per_replica)):
        there = resources.get(kind, 0.0)
        if each * count > there:
            raise ConfigError(
                f"the cluster has {there:g} {kind}s and {count} engines want {each:g} each; add nodes, or give fewer "
                f"--replicas or --{kind.lower()}s-per-replica"
            )


def check_nodes(plan: DeploymentPlan, reports: Sequence[NodeReport]) -> None:
    """Raise ConfigError for nodes that differ from this one, or lack the model."""
    missing = [report.node for report in reports if report.evenflow is None]
    if missing:
        raise ConfigError(f"EvenFlow is not installed on {', '.join(missing)}; install {__version__} on every node")
    others = {report.node: report.evenflow for report in reports if report.evenflow != __version__}
    if others:
        told = ", ".join(f"{version} on {node}" for node, version in others.items())
        raise ConfigError(f"this is EvenFlow {__version__}, and there is {told}; install the same version on every node")
    without = [report.node for report in reports if not report.has_model]
    if without:
        raise ConfigError(f"{plan.engine.model} is no model folder on {', '.join(without)}; every node needs the model there")


def try_engine(plan: DeploymentPlan) -> None:
    """Start one engine of ``plan`` on the side and end it again. Raises ConfigError with what it failed of.

    Without free room for it nothing is tried, and the log says so.
    """
    ray, _ = import_ray()
    free = ray.available_resources()
    if free.get("CPU", 0.0) < plan.ray.cpus_per_replica or free.get("GPU", 0.0) < plan.gpus_per_replica:
        log.warning("there is no free room to try an engine first; if it cannot load, those that run are replaced in vain")
        return

    def start_and_end(config: EngineConfig) -> str | None:
        import asyncio

        from evenflow.base.errors import EvenFlowError
        from evenflow.serving.client.engine_client import EngineClient

        async def main() -> str | None:
            engine = EngineClient(config)
            try:
                await engine.wait_until_ready()
            except EvenFlowError as error:
                return str(error)
            finally:
                await engine.close()
            return None

        return asyncio.run(main())

    resources = {"num_cpus": plan.ray.cpus_per_replica, "num_gpus": plan.gpus_per_replica, "max_retries": 0}
    config = replace(plan.engine, policy="fair") if plan.engine.policy == SHARED_POLICY else plan.engine
    try:
        fault = ray.get(ray.remote(**resources)(start_and_end).remote(config), timeout=TRIAL_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        fault = f"an engine was not ready within {TRIAL_TIMEOUT_S:g} s"
    except ray.exceptions.RayError as error:
        fault = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if fault is not None:
        raise ConfigError(f"an engine cannot load, and the deployment that runs is left as it is: {fault}")


def look_at_nodes(model: Path) -> list[NodeReport]:
    """Run a small task on every node that lives."""
    ray, _ = import_ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def look(node: str, folder: str) -> tuple[str, str | None, str, bool]:
        import contextlib
        import os
        import platform

        version: str | None = None
        with contextlib.suppress(ImportError):
            from evenflow.base.version import __version__ as found

            version = found
        return node, version, platform.python_version(), os.path.isfile(os.path.join(folder, "config.json"))

    task = ray.remote(num_cpus=0)(look)
    looks = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            node["NodeManagerAddress"], str(model.resolve())
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    try:
        return [NodeReport(*found) for found in ray.get(looks, timeout=LOOK_TIMEOUT_S)]
    except ray.exceptions.GetTimeoutError:
        raise ConfigError(f"not every node of the cluster has answered within {LOOK_TIMEOUT_S:g} s") from None
    except ray.exceptions.RayError as error:
        raise ConfigError(f"a node of the cluster cannot be looked at: {type(error).__name__}: {error}") from None
