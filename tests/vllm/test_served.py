"""A real ``vllm serve`` with a real model and LoRA adapters: keys, forging, adapters, metrics, start-up errors."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from environment import Environment

from evenflow.access.keys import hash_key

CLIENTS = "".join(
    f'[clients.{name}]\nweight = {weight}\napi_keys = ["{hash_key(name)}"]\n' for name, weight in (("alice", 1), ("bob", 2))
)
CLIENTS = f'[admin]\napi_keys = ["{hash_key("root")}"]\n{CLIENTS}'


def command(port: int, *options: str) -> list[str]:
    environment = Environment()
    adapters = [f"lora{i}={environment.adapters / f'lora{i}'}" for i in (1, 2, 3)]
    return [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(environment.model)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "base"),
        *("--max-num-seqs", "4", "--max-model-len", "512", "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"),
        *("--lora-modules", *adapters),
        *("--scheduler-cls", "evenflow.integrations.vllm.FairScheduler"),
        *("--middleware", "evenflow.integrations.vllm.ClientIdentity"),
        *options,
    ]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "clients.toml").write_text(CLIENTS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {**os.environ, "EVENFLOW_CLIENTS": str(folder / "clients.toml"), "EVENFLOW_POLICY": "vtc"}
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command(port), env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(1)
        else:
            raise AssertionError(log.read_text()[-3000:])
        yield address
        assert process.poll() is None, log.read_text()[-3000:]
        assert "the books have failed" not in log.read_text()
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ask(url, key=None, **body):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    given = {"model": "base", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, "ignore_eos": True, **body}
    return httpx.post(f"{url}/v1/completions", json=given, headers=headers, timeout=300)


def series(url, name):
    """Value by the labels but the engine's."""
    found = {}
    for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines():
        if line.startswith(name + "{"):
            labels, value = line[len(name) + 1 :].rsplit("} ", 1)
            found[labels.replace(',engine="0"', "").split('"')[1]] = float(value)
    return found


def test_a_key_is_needed_and_says_who_pays(url):
    assert ask(url).status_code == 401
    assert ask(url, "nobody").status_code == 401
    before = series(url, "evenflow_client_completion_tokens_total")
    answer = ask(url, "alice", user="bob", vllm_xargs={"evenflow_client": "bob"})
    assert answer.status_code == 200, answer.text
    time.sleep(0.5)
    after = series(url, "evenflow_client_completion_tokens_total")
    assert after["alice"] - before.get("alice", 0) == 8
    assert after.get("bob", 0) == before.get("bob", 0)


def test_adapters_have_series_of_their_own(url):
    texts = {}
    for model in ("base", "lora1", "lora2", "lora3"):
        answer = ask(url, "bob", model=model)
        assert answer.status_code == 200, answer.text
        texts[model] = answer.json()["choices"][0]["text"]
    assert len(set(texts.values())) == 4, "random adapters say other things than the base model"
    time.sleep(0.5)
    tokens = series(url, "evenflow_adapter_completion_tokens_total")
    assert {name: tokens[name] for name in ("lora1", "lora2", "lora3")} == {"lora1": 8, "lora2": 8, "lora3": 8}


def test_three_adapters_of_two_slots_under_load_and_callers_that_hang_up(url):
    before = series(url, "evenflow_client_requests_total")

    def one(number: int) -> int:
        if number % 6 == 5:
            body = {"model": "base", "prompt": "x", "max_tokens": 400}
            with contextlib.suppress(httpx.TimeoutException):
                httpx.post(f"{url}/v1/completions", json=body, timeout=1.0, headers={"authorization": "Bearer alice"})
            return 200
        return ask(url, ("alice", "bob")[number % 2], model=f"lora{number % 3 + 1}").status_code

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert set(pool.map(one, range(24))) == {200}
    for _ in range(60):
        after = series(url, "evenflow_client_requests_total")
        ended = sum(after.values()) - sum(before.values())
        if ended == 24:
            break
        time.sleep(1)
    assert ended == 24
    assert set(series(url, "evenflow_client_requests_running").values()) == {0.0}
    assert set(series(url, "evenflow_client_requests_waiting").values()) == {0.0}
    assert httpx.get(f"{url}/metrics", timeout=30).text.count("evenflow_books_faults_total{") == 1


def test_chat_and_responses_are_attributed_too(url):
    headers = {"authorization": "Bearer bob"}
    before = series(url, "evenflow_client_requests_total")["bob"]
    chat = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    assert httpx.post(f"{url}/v1/chat/completions", json=chat, headers=headers, timeout=300).status_code == 200
    response = {"model": "base", "input": "Hi", "max_output_tokens": 4}
    assert httpx.post(f"{url}/v1/responses", json=response, headers=headers, timeout=300).status_code == 200
    time.sleep(0.5)
    assert series(url, "evenflow_client_requests_total")["bob"] - before == 2


def test_unloading_an_adapter_needs_an_administrator(url):
    for key, status in ((None, 401), ("alice", 403)):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = httpx.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": "lora1"}, headers=headers, timeout=30)
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("variables", "options", "says"),
    [
        ({"EVENFLOW_POLICY": "nonsense"}, (), "nonsense"),
        ({}, ("--scheduling-policy", "priority"), "scheduling-policy is 'priority'"),
    ],
)
def test_what_cannot_work_is_said_at_start(variables, options, says):
    result = subprocess.run(
        command(1, *options), env={**os.environ, **variables}, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode != 0
    assert says in result.stdout + result.stderr


def test_offline_requests_name_their_client():
    program = f"""
from vllm import LLM, SamplingParams
name = "evenflow.integrations.vllm.FairScheduler"
llm = LLM(model={str(Environment().model)!r}, scheduler_cls=name, max_model_len=256, max_num_seqs=4)
both = [SamplingParams(max_tokens=4, ignore_eos=True, extra_args={{"evenflow_client": name}}) for name in ("a", "b")]
assert len(llm.generate(["one", "two"], both)) == 2
scheduler = llm.llm_engine.engine_core.engine_core.scheduler
assert {{name: tally.completion_tokens for name, tally in scheduler._figures.clients.by_name.items()}} == {{"a": 4, "b": 4}}
print("counted")
"""
    variables = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=300, check=False
    )
    assert "counted" in result.stdout, result.stdout[-2000:] + result.stderr[-3000:]


def test_installing_evenflow_changed_no_package_of_vllms():
    environment = Environment()
    before = json.loads(environment.packages_before.read_text())
    after = json.loads(environment.packages_after.read_text())
    assert {name: after["packages"].get(name) for name in before} == before
    assert after["check_returned"] == 0, after["check_said"]
    assert "evenflow" in after["packages"]


def test_only_vllm_loads_what_is_heavy():
    """The middleware and the plug-in are imported into the server's process: they bring no kernel of ours."""
    program = "import sys, evenflow.integrations.vllm.identity, evenflow.integrations.vllm.series; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in loaded for name in ("torch", "numba", "vllm"))
