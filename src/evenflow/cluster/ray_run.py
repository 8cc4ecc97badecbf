"""A deployment from its start to its end: a cluster is joined or started, checked, deployed to, waited for and cleaned up."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from evenflow.base.errors import ConfigError, EvenFlowError
from evenflow.cluster.adapter_table import AdapterEntry
from evenflow.cluster.plan import DeploymentPlan
from evenflow.cluster.ray_application import build
from evenflow.cluster.ray_checks import check_cluster, try_engine
from evenflow.cluster.ray_directory import NAMESPACE, actor_name, directory_actor
from evenflow.cluster.ray_package import import_ray

log = logging.getLogger("evenflow.cluster")

OBJECT_STORE_BYTES = 100 << 20
"""Nothing of ours goes through it; Ray wants at least 75 MiB."""
START_TIMEOUT_S = 600.0
_POLL_S = 0.2


class Deployment:
    """One deployment on one cluster. ``close`` ends what this process started: the deployment, and a cluster of its own."""

    def __init__(self, plan: DeploymentPlan) -> None:
        """Connect. Raises ConfigError without Ray, or if the cluster cannot be reached or started."""
        self._ray, self._serve = import_ray()
        self._plan = plan
        self._folder: str | None = None
        self._is_deployed = False
        self._connect(plan.ray.address)

    def deploy(self) -> None:
        """Check, deploy, and wait until all engines and fronts are up. Raises ConfigError; what ran before goes on then."""
        check_cluster(self._plan)
        options, server = self._plan.ray, self._plan.server
        proxy = {"proxy_location": "Disabled"}
        if options.doors == "ray":
            proxy = {"proxy_location": "EveryNode", "http_options": {"host": server.host, "port": server.port}}  # type: ignore[dict-item]
        self._serve.start(**proxy)
        replaces = options.app_name in self._serve.status().applications
        self._is_deployed = not replaces
        directory = directory_actor(options.app_name)
        if replaces:
            try_engine(self._plan)  # the adapters may have been others:
            for name, folder in self._plan.adapters.items():
                self._ray.get(directory.change.remote(name, AdapterEntry(str(folder)), 0))
        try:
            self._serve.run(build(self._plan), name=options.app_name, route_prefix="/" if options.doors == "ray" else None)
        except RuntimeError as error:
            raise ConfigError(f"the deployment has failed: {self._reason() or error}") from None
        self._is_deployed = True

    def addresses(self, timeout_s: float = START_TIMEOUT_S) -> list[str]:
        """Where requests may be sent, once every front listens. Raises EvenFlowError after ``timeout_s``."""
        server = self._plan.server
        if self._plan.ray.doors == "ray":
            return [f"http://{server.host}:{server.port}"]
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            fronts = self.status()["fronts"]
            found = [address for address in fronts.values() if address]
            if len(found) >= self._plan.ray.fronts:
                return sorted(set(found))
            time.sleep(_POLL_S)
        raise EvenFlowError("no front has said where it listens")

    def status(self) -> dict[str, Any]:
        """What the directory knows: fronts, replicas, counters; empty while it is away."""
        try:
            actor = self._ray.get_actor(actor_name(self._plan.ray.app_name), namespace=NAMESPACE)
            found: dict[str, Any] = self._ray.get(actor.status.remote(), timeout=5.0)
        except (ValueError, self._ray.exceptions.RayError):
            return {"fronts": {}, "replicas": [], "counters": {}}
        return found

    def close(self, *, leaves_deployment: bool = False) -> None:
        """End what was started here, and leave the cluster. Idempotent."""
        if not self._ray.is_initialized():
            return
        if self._is_deployed and not leaves_deployment:
            try:
                self._serve.delete(self._plan.ray.app_name)
                self._ray.kill(self._ray.get_actor(actor_name(self._plan.ray.app_name), namespace=NAMESPACE))
            except Exception as error:  # whatever Ray raises while it goes down: the end comes all the same
                log.warning("the deployment did not end cleanly: %s", error)
        if self._folder is not None:
            self._serve.shutdown()
        self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self, address: str | None) -> None:
        words: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": logging.WARNING, "log_to_driver": True}
        if address is None:
            self._folder = tempfile.mkdtemp(prefix="ef-ray-")  # short: Ray puts Unix sockets far below it
            words |= {
                "address": "local",
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_temp_dir": self._folder,
            }
        else:
            check_reachable(address)
            words["address"] = address
        try:
            self._ray.init(**words)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            what = "started here" if address is None else f"reached at {address}"
            raise ConfigError(f"a Ray cluster cannot be {what}: {str(error).splitlines()[0]}") from None

    def _reason(self) -> str:
        """Why Ray Serve gave up, as far as it says: the last line of the first message."""
        application = self._serve.status().applications.get(self._plan.ray.app_name)
        messages = [] if application is None else [each.message for each in application.deployments.values() if each.message]
        lines = [line.strip() for line in "\n".join(messages).splitlines() if line.strip()]
        named = [line for line in lines if "evenflow.base.errors" in line]
        return (named or lines or [""])[-1 if named else 0].rpartition("evenflow.base.errors.")[2]


def check_reachable(address: str) -> None:
    """Raise ConfigError if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), 5.0).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(f"a Ray cluster cannot be reached at {address}: {error}") from None


def run_deployment(plan: DeploymentPlan, say: Callable[[str], object]) -> None:
    """Deploy, say where, and wait for SIGINT or SIGTERM (unless it is to be left running); then clean up."""
    ending = threading.Event()
    is_waiting = False

    def end(number: int, frame: object) -> None:
        if ending.is_set() or not is_waiting:  # a second signal, or one while something is waited for that may not come
            raise KeyboardInterrupt
        ending.set()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    deployment = Deployment(plan)
    leaves = False
    try:
        for number in before:  # ray.init has set its own
            signal.signal(number, end)
        deployment.deploy()
        for address in deployment.addresses():
            say(f"listening on {address}")
        say(f"ready: {plan.ray.replicas} engines, {plan.ray.fronts} fronts")
        leaves = plan.ray.detach
        is_waiting = True
        if not leaves:
            ending.wait()
            log.info("ending")
    finally:
        deployment.close(leaves_deployment=leaves)
        for number, handler in before.items():
            signal.signal(number, handler)
