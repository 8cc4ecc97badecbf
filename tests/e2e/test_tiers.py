"""Tiers of clients.toml in a running server: `hierarchy` shares by tier, `vtc` by client, and SIGHUP changes both."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from served import Served

pytestmark = pytest.mark.multiprocess

CLIENTS = ("gold-0", "silver-0", "silver-1", "silver-2", "silver-3")


def write_clients(path: Path, gold: tuple[str, ...], gold_weight: float) -> None:
    """Every client of CLIENTS; those in ``gold`` in the tier gold, the others in silver of weight 1."""
    tiers = f"[tiers.gold]\nweight = {gold_weight}\n[tiers.silver]\nweight = 1\n"
    path.write_text(tiers + "".join(f'[clients.{c}]\ntier = "{"gold" if c in gold else "silver"}"\n' for c in CLIENTS))


def flood(server: Served) -> list[threading.Thread]:
    """Many requests of every client, more than will be served. The threads end with the server."""

    def send(client: str) -> None:
        body = {"model": "base", "prompt": [[1, 2, 3, 4]] * 800, "max_tokens": 8, "ignore_eos": True}
        try:
            httpx.post(f"{server.url}/v1/completions", json=body, headers={"x-evenflow-client": client}, timeout=120)
        except httpx.HTTPError:
            return  # the server was ended, as planned

    threads = [threading.Thread(target=send, args=(client,)) for client in CLIENTS]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while server.metric("vllm:num_requests_waiting{") < 700 * len(CLIENTS):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return threads


def shares(server: Served, service: float) -> dict[str, float]:
    """Of the next ``service`` units, everybody's part. All clients have requests waiting all the time."""

    def totals() -> dict[str, float]:
        return server.metric_by_client("evenflow_client_service_total", CLIENTS)

    before = now = totals()
    deadline = time.monotonic() + 60
    while (served := sum(now.values()) - sum(before.values())) < service:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        now = totals()
    waiting = server.metric_by_client("evenflow_client_requests_waiting", CLIENTS)
    assert min(waiting.values()) > 0, f"somebody has nothing left to wait for: {waiting}"
    return {client: (now[client] - before[client]) / served for client in CLIENTS}


@pytest.mark.parametrize("policy", ["hierarchy", "vtc"])
def test_who_gets_what(policy, tiny_model, tmp_path):
    clients = tmp_path / "clients.toml"
    write_clients(clients, ("gold-0",), 1.0)
    options = [
        "--open",
        "--kernels",
        "torch",
        "--dtype",
        "float32",
        "--memory",
        "4MiB",
        "--threads",
        "1",
        "--max-num-seqs",
        "4",
    ]
    server = Served(str(tiny_model), "--clients", str(clients), "--policy", policy, *options)
    threads = flood(server)
    try:
        by_tier = {"gold-0": 1 / 2, **dict.fromkeys(CLIENTS[1:], 1 / 8)}
        expected = by_tier if policy == "hierarchy" else dict.fromkeys(CLIENTS, 1 / 5)
        assert shares(server, 4000) == pytest.approx(expected, abs=0.03)

        write_clients(clients, ("gold-0", "silver-0"), 2.0)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("(read) .*clients.toml: 5 clients")
        deadline = time.monotonic() + 20
        while server.metric("evenflow_client_weight", client="silver-0") != 2.0:  # a snapshot from after the change
            assert time.monotonic() < deadline
            time.sleep(0.05)
        by_tier = {"gold-0": 1 / 3, "silver-0": 1 / 3, **dict.fromkeys(CLIENTS[2:], 1 / 9)}
        by_client = {"gold-0": 2 / 7, "silver-0": 2 / 7, **dict.fromkeys(CLIENTS[2:], 1 / 7)}
        assert shares(server, 4000) == pytest.approx(by_tier if policy == "hierarchy" else by_client, abs=0.03)
    finally:
        server.close()
        for thread in threads:
            thread.join(20)
