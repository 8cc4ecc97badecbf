"""The scripts under examples/ do what they say."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_gateway_shares_service_under_vtc_and_not_under_fcfs(capsys):
    gateway = _load("gateway_dispatch")
    fair = gateway.main("vtc")
    largest_request = 400 + 2 * 50
    assert abs(fair["batch"] - fair["chat"]) <= largest_request
    unfair = gateway.main("fcfs")
    assert unfair["chat"] == 0.0
    assert "served in this order" in capsys.readouterr().out


def test_gateway_needs_no_torch():
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES / "gateway_dispatch.py")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.multiprocess
def test_offline_answers_in_every_voice():
    answers = _load("offline").main()
    assert "18 shells" in answers["base"]
    assert answers["brief"] == "18 shells"
    assert "18 SHELLS" in answers["shout"]
    assert len(set(answers.values())) == len(answers)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_trainer_sends_compressed_gradients():
    pytest.importorskip("accelerate")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*words, str(EXAMPLES / "compressed_trainer.py")], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bytes a step and rank, 14 % of fp32" in done.stdout


def test_fair_proxy_passes_requests_on_and_answers_back():
    proxy = _load("fair_proxy")
    seen = []

    async def answer_in_parts():
        yield b'data: {"choices": '
        yield b'[{"text": "hi"}]}\n\n'

    def backend(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, str(request.url), request.headers.get("x-evenflow-client"), request.content))
        return httpx.Response(201, content=answer_in_parts(), headers={"x-answer": "yes"})

    async def run() -> None:
        backend_http = httpx.AsyncClient(transport=httpx.MockTransport(backend))
        app = proxy.FairGateway(proxy.proxy_to("http://engine", backend_http), 2)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            body = {"prompt": "x", "max_tokens": 3}
            answer = await http.post("/v1/completions?a=1", json=body, headers={"x-evenflow-client": "alice"})
            assert (answer.status_code, answer.headers["x-answer"], answer.text[:5]) == (201, "yes", "data:")
            assert (await http.get("/v1/models")).status_code == 201
        assert app.dispatcher.num_running == 0

    asyncio.run(run())
    assert seen[0] == ("POST", "http://engine/v1/completions?a=1", "alice", b'{"prompt":"x","max_tokens":3}')
    assert seen[1][:2] == ("GET", "http://engine/v1/models")
