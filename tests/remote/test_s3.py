"""Adapters at s3:// through a real client and a server of S3's interface. Run by `make test-remote`, skipped elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import pytest

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

from evenflow.base.errors import AdapterNotFound, AdapterRejected  # noqa: E402
from evenflow.serving.server.access.downloads import DownloadCache  # noqa: E402


@pytest.fixture
def bucket(monkeypatch):
    """Puts weights at s3://bucket/a."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.mkdir("bucket")

    def put(weights: bytes) -> str:
        system.pipe("bucket/a/adapter_config.json", b"{}")
        system.pipe("bucket/a/adapter_model.safetensors", weights)
        return "s3://bucket/a"

    yield put
    server.stop()


def test_adapters_are_copied_kept_and_copied_again_when_they_change(bucket: Callable[[bytes], str], tmp_path):
    cache = DownloadCache(tmp_path, 1 << 20, 20.0)

    def get(address: str) -> bytes:
        return (asyncio.run(cache.folder_of(address)) / "adapter_model.safetensors").read_bytes()

    address = bucket(b"one")
    assert get(address) == b"one"
    (copy,) = tmp_path.glob("*/adapter_config.json")
    inode = copy.stat().st_ino
    assert get(address) == b"one"
    assert copy.stat().st_ino == inode, "copied again without need"
    bucket(b"two")
    assert get(address) == b"two"
    assert get(f"{address}#sha256={hashlib.sha256(b'two').hexdigest()}") == b"two"
    with pytest.raises(AdapterRejected, match="another sha256"):
        get(f"{address}#sha256={'0' * 64}")
    with pytest.raises(AdapterNotFound):
        get("s3://bucket/none")
