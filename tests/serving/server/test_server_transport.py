"""A server on a Unix socket, behind TLS, and under a path: as ``--uds``, ``--ssl-*`` and ``--root-path`` ask for."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess

import httpx
import pytest
from server_fakes import FakeEngine, FakeTokenizer

from evenflow.base.errors import ConfigError
from evenflow.serving.server.run import run_server, serve
from evenflow.serving.server.server_config import ServerConfig


async def answer(config: ServerConfig, url: str, **client) -> httpx.Response:
    """What a server with this configuration answers to one GET."""
    listening: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(FakeEngine(), FakeTokenizer(), None, config, on_listening=lambda *address: listening.set_result(address))
    )
    try:
        _, port = await asyncio.wait_for(listening, 10)
        async with httpx.AsyncClient(**client) as http:
            return await http.get(url.replace("PORT", str(port)))
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_a_unix_socket(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    config = ServerConfig(uds=path)
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    assert asyncio.run(answer(config, "http://server/ping", transport=transport)).status_code == 200


def test_a_unix_socket_of_another_server_stays(tmp_path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(ConfigError, match="another server does"):
            run_server(FakeEngine, FakeTokenizer(), None, ServerConfig(uds=tmp_path / "s"))
    (tmp_path / "file").touch()
    for name in ("file", "none/s"):
        with pytest.raises(ConfigError, match="cannot listen at"):
            run_server(FakeEngine, FakeTokenizer(), None, ServerConfig(uds=tmp_path / name))
    assert (tmp_path / "file").exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(tmp_path):
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert"))
    subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True)
    config = ServerConfig(port=0, ssl_keyfile=tmp_path / "key", ssl_certfile=tmp_path / "cert")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert"))
    assert asyncio.run(answer(config, "https://127.0.0.1:PORT/ping", verify=trusting)).status_code == 200
    with pytest.raises(httpx.TransportError):
        asyncio.run(answer(config, "http://127.0.0.1:PORT/ping"))


@pytest.mark.parametrize("path", ["/ping", "/even/ping"])
def test_a_path_of_a_proxy(path):
    assert asyncio.run(answer(ServerConfig(port=0, root_path="/even"), f"http://127.0.0.1:PORT{path}")).status_code == 200
    if path != "/ping":
        assert asyncio.run(answer(ServerConfig(port=0), f"http://127.0.0.1:PORT{path}")).status_code == 404
