"""One HTTP front of a deployment: the server's own application over a fleet, behind its own doors or Ray Serve's proxy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

import uvicorn

from evenflow.base.logs import configure_logging
from evenflow.cluster.fleet import Fleet
from evenflow.cluster.plan import DeploymentPlan
from evenflow.cluster.ray_directory import RayDirectory
from evenflow.cluster.ray_package import import_ray
from evenflow.routing.registry import create_router
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.app import create_app
from evenflow.serving.server.run import drain, open_server

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("evenflow.cluster")

OPEN_POLL_S = 0.05
RELOAD_S = 2.0
"""How often clients.toml is looked at: nobody can send SIGHUP to a front."""


class Front:
    """The user class of the deployment of fronts; ``ray.serve.ingress`` makes it the application's way in."""

    async def __init__(self, plan: DeploymentPlan, engines: object = None) -> None:  # type: ignore[misc]  # awaited
        """``engines``: Ray's handle of the other deployment, which only says that it belongs to this one."""
        _, serve = import_ray()
        configure_logging(plan.engine.log_level, form=plan.engine.log_format)
        self._plan = plan
        directory = RayDirectory(plan.ray.app_name, f"front-{serve.get_replica_context().replica_id.unique_id}")
        self._fleet = Fleet(directory, create_router(plan.ray.router))
        tokenizer, template = plan.text_side()
        self._app = create_app(self._fleet, tokenizer, template, plan.server)
        self._state: ServerState = self._app.state.server
        self._state.limits.share_minutes()
        self._fleet.take_charges = self._state.limits.take_untold
        self._fleet.hear_charges = self._state.limits.heard
        self._fleet.on_table = self._state.names.refresh
        self._directory = directory
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        if plan.ray.doors == "own":
            self._app.root_path = plan.server.root_path
            self._server, listener = open_server(self._app, self._state, plan.server, lifespan="off", shares_port=True)
            self._serving = asyncio.create_task(self._serve(self._server, listener))
        self._fleet.start()
        self._reloader = asyncio.create_task(self._reload())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve's proxy is given."""
        return self._app

    async def check_health(self) -> None:
        """Ray Serve asks now and then, and starts another front if this raises."""
        if self._state.failure is not None:
            raise RuntimeError(f"the front cannot open: {self._state.failure}")
        if not self._fleet.is_alive:
            raise RuntimeError(self._fleet.trouble)
        if self._serving is not None and self._serving.done():
            raise RuntimeError("the HTTP server has stopped by itself")

    async def __del__(self) -> None:
        """Ray Serve ends this front: refuse what is new, let what runs finish."""
        if not hasattr(self, "_reloader"):
            return
        self._reloader.cancel()
        if self._server is not None and self._serving is not None:
            await drain(self._state, self._server)
            if not self._directory.address:  # it never began
                self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        await self._fleet.close()

    async def _serve(self, server: uvicorn.Server, listener: socket.socket) -> None:
        """Take connections once requests can be answered: until then others that share the port do."""
        while not self._state.is_open:
            await asyncio.sleep(OPEN_POLL_S)
        host, port = listener.getsockname()[:2]
        scheme = "http" if self._plan.server.ssl_certfile is None else "https"
        self._directory.address = f"{scheme}://{host}:{port}"
        await server.serve(sockets=[listener])

    async def _reload(self) -> None:
        file = self._plan.server.clients_file
        seen = self._changed_ns()
        while file is not None:
            await asyncio.sleep(RELOAD_S)
            if (changed := self._changed_ns()) != seen:
                seen = changed
                await self._state.reload_clients()

    def _changed_ns(self) -> int:
        with contextlib.suppress(OSError):
            if self._plan.server.clients_file is not None:
                return self._plan.server.clients_file.stat().st_mtime_ns
        return 0
