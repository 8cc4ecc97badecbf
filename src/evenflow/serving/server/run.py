"""A server on a socket: started, reloaded (SIGHUP), drained (SIGTERM, SIGINT) and ended with its engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Generator, Mapping
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI

from evenflow.base.children import raise_file_limit
from evenflow.base.errors import ConfigError, EvenFlowError
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.app import create_app
from evenflow.serving.server.http.bounded_connection import ConnectionLimits, bounded_protocol
from evenflow.serving.server.http.file_limit import fit_to_file_limit
from evenflow.serving.server.interfaces import ChatTemplate, Engine, Tokenizer
from evenflow.serving.server.server_config import ServerConfig

log = logging.getLogger("evenflow.server")

DRAIN_POLL_S = 0.05
CUT_OFF_S = 0.2
"""For those who are cut off to be told so."""


def run_server(
    start_engine: Callable[[], Engine],
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    config: ServerConfig,
    adapters: Mapping[str, str | Path] | None = None,
) -> None:
    """Serve until a signal or the engine's end; ``start_engine`` is called inside the event loop.

    Raises what the engine, an adapter of ``adapters`` or clients.toml fails of, after everything has been ended.
    """
    raise_file_limit()

    async def main() -> None:
        engine = start_engine()
        try:
            await serve(engine, tokenizer, chat_template, config, adapters)
        finally:
            await engine.close()

    with asyncio.Runner(loop_factory=uvicorn.Config("", loop="auto", log_config=None).get_loop_factory()) as runner:
        runner.run(main())


async def serve(
    engine: Engine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    config: ServerConfig,
    adapters: Mapping[str, str | Path] | None = None,
    on_listening: Callable[[str, int], None] | None = None,
) -> None:
    """Serve a started engine until a signal or its end. ``on_listening`` gets the address, before the engine is warm."""
    app = create_app(engine, tokenizer, chat_template, config, adapters)
    state: ServerState = app.state.server
    app.root_path = config.root_path
    server, listener = open_server(app, state, config)
    host, port = (str(config.uds), 0) if config.uds is not None else listener.getsockname()[:2]
    with _signals(state, server):
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        scheme = "http" if config.ssl_certfile is None else "https"
        log.info("listening on %s", host if config.uds is not None else f"{scheme}://{host}:{port}")
        if on_listening is not None:
            on_listening(host, port)
        dying = asyncio.create_task(engine.wait_until_dead())
        failing = asyncio.create_task(state.has_failed.wait())
        await asyncio.wait((serving, dying, failing), return_when=asyncio.FIRST_COMPLETED)
        failure = state.failure or (dying.result() if dying.done() else None)
        has_stopped_by_itself = serving.done() and not server.should_exit
        server.should_exit = True
        for watch in (dying, failing):
            watch.cancel()
        await serving  # raises what it failed of
        if failure is None and has_stopped_by_itself:
            failure = EvenFlowError("the HTTP server has stopped by itself; the log says why")
    if isinstance(failure, EvenFlowError):
        raise failure
    if failure is not None:
        raise ConfigError(f"the server could not start: {failure}") from failure


def open_server(
    app: FastAPI,
    state: ServerState,
    config: ServerConfig,
    *,
    lifespan: Literal["auto", "off"] = "auto",
    shares_port: bool = False,
) -> tuple[uvicorn.Server, socket.socket]:
    """A server that has not begun, and the socket that it should serve, on which connections wait already.

    ``lifespan`` "off": somebody else starts and ends ``app``. ``shares_port``: other processes may listen there too, and the
    kernel divides the connections among them; none come to this one before it serves. Raises ConfigError if nothing can
    listen there.
    """
    listener = _listen_at_path(config.uds) if config.uds is not None else _listen(config.host, config.port, shares_port)
    server = _Server(
        uvicorn.Config(
            app,
            http=bounded_protocol(connection_limits(config), state.connections),
            ws="none",
            lifespan=lifespan,
            log_config=None,
            access_log=False,
            timeout_keep_alive=config.idle_timeout_s,  # type: ignore[arg-type]  # uvicorn takes fractions, too
            timeout_graceful_shutdown=1,
            server_header=False,
            ssl_keyfile=config.ssl_keyfile,
            ssl_certfile=config.ssl_certfile,
            ssl_ca_certs=None if config.ssl_ca_certs is None else str(config.ssl_ca_certs),
            ssl_cert_reqs=config.ssl_cert_reqs,
            ssl_ciphers=config.ssl_ciphers,
        )
    )
    return server, listener


class _Server(uvicorn.Server):
    """uvicorn's server without its own signal handlers: ours drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextlib.contextmanager
def _signals(state: ServerState, server: uvicorn.Server) -> Generator[None, None, None]:
    """SIGTERM and SIGINT drain, a second one ends at once; SIGHUP reads clients.toml again."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def start(coroutine: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def stop() -> None:
        if state.is_draining:
            log.warning("ending now: %d requests are cut off", state.num_in_flight)
            start(end_now(state, server))
        else:
            start(drain(state, server))

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: lambda: start(state.reload_clients())}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
        for task in tasks:
            task.cancel()


async def drain(state: ServerState, server: uvicorn.Server) -> None:
    """Refuse what is new, let what runs finish (up to the timeout), then end the server."""
    state.is_draining = True
    log.info("draining: %d requests run, for at most %g s", state.num_in_flight, state.config.drain_timeout_s)
    deadline_s = asyncio.get_running_loop().time() + state.config.drain_timeout_s
    while state.num_in_flight and asyncio.get_running_loop().time() < deadline_s:
        await asyncio.sleep(DRAIN_POLL_S)
    if state.num_in_flight:
        log.warning("%d requests did not finish in time and are cut off", state.num_in_flight)
        await end_now(state, server)
    server.should_exit = True


async def end_now(state: ServerState, server: uvicorn.Server) -> None:
    """Cut off whatever runs, give everybody a moment to hear of it, and end the server as always."""
    state.cut_off()
    await asyncio.sleep(CUT_OFF_S)
    server.should_exit = True


def connection_limits(config: ServerConfig) -> ConnectionLimits:
    """What a connection may take; the limit on open files is raised for as many as there may be."""
    return ConnectionLimits(
        max_header_bytes=config.max_header_bytes,
        max_headers=config.max_headers,
        max_connections=fit_to_file_limit(config.max_connections),
        header_timeout_s=config.header_timeout_s,
        body_timeout_s=config.body_timeout_s,
        send_timeout_s=config.send_timeout_s,
    )


def _listen(host: str, port: int, shares_port: bool = False) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        if not shares_port:
            listener.listen(2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from None
    return listener


def _listen_at_path(path: Path) -> socket.socket:
    """A Unix socket; one that an ended server has left there is taken away."""
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise ConfigError(f"cannot listen at {path}: another server does")
            path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(2048)
    except OSError as error:
        raise ConfigError(f"cannot listen at {path}: {error}") from None
    return listener
