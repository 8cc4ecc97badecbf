"""Two engines of the embedded model on a local Ray cluster: served as by one, killed, scaled, refused in one sentence.

make test-ray
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from ray_deployment import RayDeployment

pytest.importorskip("ray", reason="needs the environment of tests/on_ray/environment.py")

ENGINES, FRONTS, DIRECTORY = "ServeReplica:evenflow:Engines", "ServeReplica:evenflow:Fronts", "DirectoryActor"


@pytest.fixture(scope="module")
def deployed():
    deployment = RayDeployment("--replicas", "2", "--fronts", "2", "--port", str(free_port()))
    yield deployment
    log = deployment.close()
    assert deployment.process.returncode == 0, log[-3000:]
    assert deployment.left_over == [], "Ctrl-C leaves processes behind"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def adapter_state(deployment, name):
    listed = httpx.get(f"{deployment.url}/v1/adapters", timeout=30).json()["data"]
    return next((each for each in listed if each["name"] == name), None)


def test_the_same_routes_errors_and_answers(deployed):
    first = deployed.complete("The weather today", max_tokens=12)
    assert first.status_code == 200, first.text
    again = [deployed.complete("The weather today", max_tokens=12).json()["choices"][0]["text"] for _ in range(8)]
    assert set(again) == {first.json()["choices"][0]["text"]}, "both engines answer alike"
    assert deployed.complete("x", model="nobody").status_code == 404
    assert httpx.get(f"{deployed.url}/ready", timeout=10).status_code == 200
    assert httpx.get(f"{deployed.url}/health", timeout=10).status_code == 200
    assert "evenflow" in httpx.get(f"{deployed.url}/metrics", timeout=10).text
    with httpx.stream(
        "POST", f"{deployed.url}/v1/completions", json={"model": "base", "prompt": "Hi", "max_tokens": 5, "stream": True}
    ) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) >= 4


def test_adapters_act_on_all_engines_and_survive_a_restart(deployed):
    from evenflow.demo.assets import adapter_paths

    path = str(next(iter(adapter_paths().values())))
    body = {"lora_name": "mine", "lora_path": path}
    assert httpx.post(f"{deployed.url}/v1/load_lora_adapter", json=body, timeout=30).status_code == 200
    assert httpx.post(f"{deployed.url}/v1/adapters/mine/pin", timeout=30).json()["pinned"]
    assert [deployed.complete("x", "mine").status_code for _ in range(6)] == [200] * 6
    before = {process.pid for process in deployed.processes(ENGINES)}
    deployed.kill(ENGINES)
    deployed.wait_until(lambda: len({p.pid for p in deployed.processes(ENGINES)} - before) == 1)
    deployed.wait_until(lambda: sum("takes requests" in line for line in deployed.log) >= 6)  # two fronts, three engines
    listed = adapter_state(deployed, "mine")
    assert listed is not None
    assert listed["pinned"]
    assert [deployed.complete("x", "mine").status_code for _ in range(8)] == [200] * 8
    assert httpx.post(f"{deployed.url}/v1/unload_lora_adapter", json={"lora_name": "mine"}, timeout=30).status_code == 200
    time.sleep(1.0)  # the other front hears of it
    assert {deployed.complete("x", "mine").status_code for _ in range(6)} == {404}


def test_a_killed_engine_is_replaced_and_every_request_has_one_end(deployed):
    """Under load: what was not begun is answered, what was begun ends with an error event, nothing hangs."""
    reference = {p: deployed.complete(p, max_tokens=24).json()["choices"][0]["text"] for p in ("One", "Two", "Three")}
    ends: list[str] = []
    stop = threading.Event()

    def stream(prompt: str) -> str:
        text, body = "", {"model": "base", "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        try:
            with httpx.stream("POST", f"{deployed.url}/v1/completions", json={**body, "stream": True}, timeout=60) as answer:
                if answer.status_code != 200:
                    return f"status {answer.status_code}"
                for line in answer.iter_lines():
                    if line == "data: [DONE]":
                        return "whole" if text == reference[prompt] else f"another text: {text!r}"
                    if line.startswith("data: "):
                        event = json.loads(line[6:])
                        if "error" in event:
                            is_prefix = reference[prompt].startswith(text)
                            return "told" if is_prefix and "what came so far" in event["error"]["message"] else line
                        text += event["choices"][0]["text"]
            return "cut without a word"
        except httpx.HTTPError as error:
            return type(error).__name__

    def load() -> None:
        for prompt in itertools.cycle(reference):
            if stop.is_set():
                return
            ends.append(stream(prompt))

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(load)
        time.sleep(2)
        before = {process.pid for process in deployed.processes(ENGINES)}
        deployed.kill(ENGINES, 1)
        deployed.wait_until(lambda: len({p.pid for p in deployed.processes(ENGINES)} - before) == 1)
        time.sleep(3)
        stop.set()
    assert set(ends) <= {"whole", "told"}, {end: ends.count(end) for end in set(ends)}
    assert ends.count("whole") > 20
    assert ends.count("told") <= 8, "no more than ran there"


def test_a_killed_directory_is_missed_by_nobody_and_filled_again(deployed):
    before = adapter_state(deployed, "pirate")["digest"]
    deployed.kill(DIRECTORY)
    answers = [deployed.complete("x", "pirate").status_code for _ in range(10)]
    assert answers == [200] * 10
    deployed.wait_until(lambda: any("directory is back" in line for line in deployed.log))
    time.sleep(1)
    assert adapter_state(deployed, "pirate")["digest"] == before


def test_a_killed_front_is_replaced_and_the_other_one_serves_meanwhile(deployed):
    before = {process.pid for process in deployed.processes(FRONTS)}
    deployed.kill(FRONTS)
    answers = []
    for _ in range(20):
        try:
            answers.append(deployed.complete("x").status_code)
        except httpx.TransportError:  # a connection that the killed one had accepted
            answers.append(0)
    assert answers.count(200) >= 15, answers
    deployed.wait_until(lambda: len({p.pid for p in deployed.processes(FRONTS)} - before) == 1)


def test_shares_hold_with_two_fronts_whatever_goes_where(tmp_path):
    """Weights 4 to 1, two fronts, two engines, more asked than can be served: what was 4 to 1 stays 4 to 1."""
    clients = tmp_path / "clients.toml"
    clients.write_text("[clients.heavy]\nweight = 4.0\n[clients.light]\nweight = 1.0\n")
    redis = redis_server()
    policy = ["--policy", f"vtc-shared:redis://127.0.0.1:{redis[1]}/0"] if redis else []
    try:
        for extra in ([], policy) if redis else ([],):
            deployment = RayDeployment(
                "--replicas", "2", "--fronts", "2", "--port", str(free_port()), "--clients", str(clients), "--open",
                "--max-num-seqs", "4", "--router", "random", *extra,
            )  # fmt: skip
            try:
                served = shares(deployment, 14.0)
                ratio = served["heavy"] / served["light"]
                print(f"{'redis' if extra else 'actor'}: {served} {ratio:.2f}")
                assert ratio == pytest.approx(4.0, rel=0.15)
            finally:
                deployment.close()
    finally:
        if redis:
            redis[0].terminate()
            redis[0].wait()


def shares(deployment: RayDeployment, seconds: float) -> dict[str, int]:
    """Completion tokens of each client in the later part of ``seconds``; each has 24 requests under way at all times."""
    served, lock, stop = {"heavy": 0, "light": 0}, threading.Lock(), threading.Event()
    counts_from = time.monotonic() + 4

    def load(client: str) -> None:
        with httpx.Client(timeout=60) as http:
            body = {"model": "base", "prompt": "Once", "max_tokens": 16, "ignore_eos": True, "user": client}
            while not stop.is_set():
                answer = http.post(f"{deployment.url}/v1/completions", json=body)
                if answer.status_code == 200 and time.monotonic() > counts_from and not stop.is_set():
                    with lock:
                        served[client] += answer.json()["usage"]["completion_tokens"]

    threads = [threading.Thread(target=load, args=(client,), daemon=True) for client in served for _ in range(24)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join(60)
    return served


def redis_server():
    if shutil.which("redis-server") is None:
        return None
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    return subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL), port


def test_behind_ray_serves_own_proxy_and_through_its_own_commands_address(tmp_path):
    """What ``serve run evenflow.integrations.ray:app model=DIR ...`` does, on a port of its own."""
    from evenflow.demo.assets import model_path

    port = free_port()
    script = f"""
import logging, tempfile, time
import httpx, ray
from ray import serve
from evenflow.integrations.ray import app
folder = tempfile.mkdtemp(prefix="ef-ray-")
ray.init(address="local", object_store_memory=80 << 20, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
try:
    serve.start(proxy_location="HeadOnly", http_options={{"host": "127.0.0.1", "port": {port}}})
    serve.run(app({{"model": {str(model_path())!r}, "cpus_per_replica": "0.1", "memory": "48MiB", "threads": "1",
                   "served_model_name": "base", "app_name": "evenflow"}}), name="evenflow")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = httpx.post("http://127.0.0.1:{port}/v1/completions", json={{"model": "base", "prompt": "x", "max_tokens": 4}},
                            timeout=60)
        if answer.status_code == 200:
            break
        time.sleep(0.2)
    print("status", answer.status_code)
    body = {{"model": "base", "prompt": "x", "max_tokens": 6, "stream": True, "ignore_eos": True}}
    with httpx.stream("POST", "http://127.0.0.1:{port}/v1/completions", json=body, timeout=60) as stream:
        print("lines", len([line for line in stream.iter_lines() if line]))
    print("unknown", httpx.post("http://127.0.0.1:{port}/v1/completions", json={{"model": "no", "prompt": "x"}}).status_code)
finally:
    serve.shutdown()
    ray.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert "status 200" in done.stdout, done.stdout + done.stderr[-3000:]
    assert "unknown 404" in done.stdout
    assert int(re.search(r"lines (\d+)", done.stdout)[1]) >= 5


def test_a_deployment_that_cannot_be_leaves_the_one_before_and_one_that_can_replaces_it(monkeypatch):
    """On a cluster that was started by hand, which both join."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else all need one token, which is the operator's to hand out
    gcs, port = free_port(), free_port()
    options = ["--num-cpus=4", "--object-store-memory=80000000", "--include-dashboard=false", "--disable-usage-stats"]
    folder = tempfile.mkdtemp(prefix="ef-ray-")
    head = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--head",
            "--block",
            f"--port={gcs}",
            f"--temp-dir={folder}",
            *options,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    where = ["--address", f"127.0.0.1:{gcs}", "--port", str(port), "--detach"]
    started: list[RayDeployment] = []
    try:
        time.sleep(8)
        first = RayDeployment("--replicas", "1", *where)
        started.append(first)
        assert first.process.wait(30) == 0
        assert first.complete("x").status_code == 200
        for arguments, says in ((("--cpus-per-replica", "64"), "the cluster has 4 CPUs and 1 engines want 64 each"),):
            second = RayDeployment(*where, *arguments, waits=False)
            started.append(second)
            assert second.process.wait(180) == 1
            second._reader.join(5)
            assert says in "".join(second.log)
            assert first.complete("x").status_code == 200, "what ran before goes on"
    finally:
        for deployment in started:
            deployment.close()
        children = psutil.Process(head.pid).children(recursive=True)
        head.kill()
        head.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        _, alive = psutil.wait_procs(children, timeout=15)
        for process in alive:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_engines_come_with_waiting_prompts():
    deployment = RayDeployment(
        "--autoscale", "1:2", "--waiting-tokens-per-replica", "200", "--max-num-seqs", "1", "--port", str(free_port())
    )
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            deployment.complete("word " * 60, max_tokens=60, timeout_s=120)

    try:
        assert len(deployment.processes(ENGINES)) == 1
        threads = [threading.Thread(target=load, daemon=True) for _ in range(12)]
        for thread in threads:
            thread.start()
        deployment.wait_until(lambda: len(deployment.processes(ENGINES)) == 2, 100)
        stop.set()
        for thread in threads:
            thread.join(120)
    finally:
        stop.set()
        deployment.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--replicas", "4", "--cpus-per-replica", "64"), r"(the cluster has \d+ CPUs and 4 engines want 64 each)"),
        (("--address", "127.0.0.1:1"), r"(a Ray cluster cannot be reached at 127.0.0.1:1)"),
        (("--autoscale", "4:2"), r"(autoscale is '4:2'; allowed: MIN:MAX)"),
        (("--router", "nearest"), r"(unknown router 'nearest'; known: affinity)"),
    ],
)
def test_what_cannot_be_deployed_is_told_in_one_sentence(arguments, says):
    deployment = RayDeployment(*arguments, waits=False)
    try:
        assert deployment.process.wait(90) == 1
        deployment._reader.join(5)
        assert "Traceback" not in "".join(deployment.log)
        assert re.search(says, "".join(deployment.log)), "".join(deployment.log)
    finally:
        deployment.close()
