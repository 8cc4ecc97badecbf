"""`evenflow bench serve` against a server that misbehaves, and against the embedded model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from misbehaving import OUTPUT_TOKENS, PROMPT_TOKENS, TOKEN_S, Misbehaving, misbehaving_server

from evenflow.bench.load.server_process import ServerProcess
from evenflow.cli.main import main
from evenflow.demo.assets import adapter_paths, model_path


@pytest.fixture(scope="module")
def running():
    with misbehaving_server() as server:
        yield server


@pytest.fixture
def server(running: Misbehaving) -> Misbehaving:
    running.bodies.clear()
    running.headers.clear()
    running.most_at_once = 0
    running.num_answered = 0
    return running


def load(server: Misbehaving, tmp_path: Path, *more: str, status: int = 0, workload: str = "poisson") -> dict:
    """The document of a load of everything at once, unless more says otherwise."""
    path = tmp_path / "load.json"
    arguments = ["--url", server.url, "--workload", workload, "--request-rate", "inf", "--json", str(path), *more]
    assert main(["bench", "serve", *arguments]) == status
    return json.loads(path.read_text())


def test_a_good_server_is_measured_token_by_token(server, tmp_path):
    document = load(server, tmp_path, "--num-prompts", "6", "--save-detailed")
    figures = document["results"]
    assert (figures["num_ok"], figures["num_requests"], figures["errors"]) == (6, 6, {})
    assert (figures["output_tokens"], figures["prompt_tokens"]) == (6 * OUTPUT_TOKENS, 6 * PROMPT_TOKENS)
    assert figures["ttft_s"]["p50"] >= TOKEN_S
    assert figures["itl_s"]["p50"] >= 0.9 * TOKEN_S
    assert figures["tpot_s"]["p50"] == pytest.approx(figures["itl_s"]["mean"], rel=0.5)
    assert figures["e2e_s"]["max"] >= 3 * TOKEN_S
    assert figures["output_tokens_per_s"] == pytest.approx(18 / figures["seconds"])
    assert all(len(row["token_times_s"]) == 3 for row in document["requests"])
    assert document["requests"][0]["model"] == "good"  # the first that the server lists
    client = figures["fairness"]["clients"]["client-0"]
    assert client["service"] == 6 * (PROMPT_TOKENS + 2 * OUTPUT_TOKENS)
    assert client["share"] == 1.0


@pytest.mark.parametrize(
    ("model", "kind", "tokens"),
    [
        ("429", "429", 0), ("503", "503", 0), ("plain", "no stream", 0), ("cut", "cut stream", 2), ("short", "cut stream", 2),
        ("garbage", "not JSON", 2), ("number", "not JSON", 2), ("fault", "error in stream", 2),
    ],
)  # fmt: skip
def test_every_fault_is_counted_by_its_kind_and_the_load_goes_on(server, tmp_path, model, kind, tokens):
    document = load(server, tmp_path, "--num-prompts", "3", "--model", model, status=1)
    figures = document["results"]
    assert {kind: error["count"] for kind, error in figures["errors"].items()} == {kind: 3}
    assert figures["errors"][kind]["example"]
    assert (figures["num_ok"], figures["goodput_share"], figures["ttft_s"]) == (0, 0.0, {})
    assert figures["output_tokens"] == 3 * tokens


def test_good_and_bad_answers_stand_beside_each_other(server, tmp_path, capsys):
    modules = ("--lora-modules", "good", "429", "silent", "cut", "--lora-assignment", "round-robin")
    document = load(server, tmp_path, "--num-prompts", "8", *modules)
    figures = document["results"]
    assert [row["model"] for row in sorted(document["requests"], key=lambda r: r["due_s"])].count("429") == 2
    assert figures["num_ok"] == 4
    assert {kind: error["count"] for kind, error in figures["errors"].items()} == {"429": 2, "cut stream": 2}
    assert figures["output_tokens"] == 4 * 3 + 2 * 2  # the silent server's tokens are counted by their events
    shown = capsys.readouterr().out
    assert "not now" in shown
    assert "inter-token latency" in shown


def test_a_server_that_says_nothing_runs_into_the_timeout(server, tmp_path):
    document = load(server, tmp_path, "--num-prompts", "2", "--model", "slow", "--timeout", "0.2", status=1)
    assert document["results"]["errors"]["timeout"]["count"] == 2


def test_goodput_counts_answers_within_all_objectives(server, tmp_path):
    within = load(server, tmp_path, "--num-prompts", "4", "--slo-ttft", "5000", "--slo-itl", "5000")["results"]
    assert within["goodput_share"] == 1.0
    assert within["goodput_requests_per_s"] == pytest.approx(within["requests_per_s"])
    late = load(server, tmp_path, "--num-prompts", "4", "--slo-itl", str(1e3 * TOKEN_S / 2))["results"]
    assert (late["goodput_share"], late["num_ok"]) == (0.0, 4)


def test_requests_leave_when_they_are_due_whatever_is_unanswered(server, tmp_path):
    many = ("--num-prompts", "12", "--request-rate", "200")
    document = load(server, tmp_path, *many)
    assert server.most_at_once > 4  # three tokens take as long as a dozen arrivals
    assert document["results"]["sent_late_s"]["p50"] < 0.05
    server.most_at_once = 0
    bounded = load(server, tmp_path, *many, "--max-concurrency", "2")
    assert server.most_at_once == 2
    assert bounded["results"]["sent_late_s"]["max"] > 3 * TOKEN_S


def test_one_seed_is_one_load(server, tmp_path):
    def sent(seed: str) -> list:
        server.bodies.clear()
        few = ("--num-prompts", "5", "--request-rate", "100", "--max-concurrency", "1")
        document = load(server, tmp_path, *few, "--seed", seed)
        return [[row["due_s"] for row in document["requests"]], [body["prompt"] for body in server.bodies]]

    first = sent("1")
    assert sent("1") == first
    assert sent("2") != first
    assert len(set(first[1])) == 5  # no two prompts alike, so that a prefix cache finds nothing


def test_clients_are_named_as_configured(server, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("# name key\nanna sk-1\nben sk-2\n")
    load(server, tmp_path, "--num-prompts", "4", "--client-as", "key", "--client-keys", str(keys))
    assert sorted(h["authorization"] for h in server.headers) == ["Bearer sk-1"] * 2 + ["Bearer sk-2"] * 2
    server.headers.clear()
    load(server, tmp_path, "--num-prompts", "2", "--num-clients", "2", "--client-as", "header:x-who", "--api-key", "sk-3")
    assert {(h["x-who"], h["authorization"]) for h in server.headers} == {(f"client-{i}", "Bearer sk-3") for i in (0, 1)}
    server.bodies.clear()
    document = load(server, tmp_path, "--num-prompts", "2", "--num-clients", "2", "--client-as", "user")
    assert {body["user"] for body in server.bodies} == {"client-0", "client-1"}
    assert "sk-3" not in json.dumps(document)


def test_what_vllm_and_guidellm_call_its_flags(server, tmp_path):
    document = load(
        server, tmp_path, "--max-requests", "3", "--random-input-len", "4-6", "--random-output-len", "3",
        "--random-prefix-len", "2",
        "--ignore-eos", "--extra-body", '{"top_k": 1, "stream_options": null}',
    )  # fmt: skip
    assert document["results"]["num_ok"] == 3
    for body in server.bodies:
        assert (body["ignore_eos"], body["top_k"], body["max_tokens"], body["stream"]) == (True, 1, 3, True)
        assert "stream_options" not in body
        assert 4 <= len(body["prompt"].split()) <= 6
    assert len({tuple(body["prompt"].split()[:2]) for body in server.bodies}) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workload", "floods"], "chat, flood, poisson"),
        (["--request-rate", "0"], "above 0, or inf"),
        (["--num-prompts", "0"], "1 or more"),
        (["--num-prompts", "3", "--duration", "2"], "exclude each other"),
        (["--url", "ftp://x"], "http://HOST"),
        (["--workload", "flood", "--num-clients", "1", "--request-rate", "5"], "two clients"),
        (["--input-len", "9-3"], "N or N-M"),
        (["--client-as", "key"], "--client-keys FILE"),
        (["--client-as", "cookie"], "header, header:NAME, user, key"),
        (["--slo-ttft", "-1"], "milliseconds above 0"),
        (["--metric-percentiles", "0"], "above 0 up to 100"),
        (["--extra-body", "[]"], "a JSON object"),
        (["--header", "oops"], "KEY=VALUE"),
        (["--workload", "overload", "--num-clients", "3"], "says its own"),
        (["--json", "/nowhere/load.json"], "there is no folder"),
    ],
)
def test_wrong_options_are_refused_by_name(capsys, more, message):
    base = ["--url", "http://127.0.0.1:9/v1", "--workload", "poisson", "--request-rate", "inf"]
    assert main(["bench", "serve", *base, *more]) == 1
    assert message in capsys.readouterr().err


def test_nobody_at_the_address(capsys):
    assert main(["bench", "serve", "--url", "http://127.0.0.1:9/v1", "--workload", "poisson"]) == 1
    assert "GET http://127.0.0.1:9/v1/models" in capsys.readouterr().err


@pytest.mark.multiprocess
def test_ctrl_c_shows_what_there_is_so_far(server, tmp_path):
    path = tmp_path / "load.json"
    command = [sys.executable, "-m", "evenflow", "bench", "serve", "--url", server.url, "--workload", "poisson"]
    command += [
        "--request-rate",
        "inf",
        "--num-prompts",
        "4",
        "--lora-modules",
        "good",
        "slow",
        "--lora-assignment",
        "round-robin",
    ]
    process = subprocess.Popen([*command, "--json", str(path)], stdout=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 60
    while len(server.bodies) < 4 or server.num_answered < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1)  # the two good answers are read
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: 4 of 4 requests had been sent" in output
    figures = json.loads(path.read_text())["results"]
    assert (figures["num_ok"], figures["num_cut_off"], figures["is_interrupted"]) == (2, 2, True)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("workload", ["chat", "flood"])
def test_the_embedded_model_under_load(tmp_path, workload):
    path = tmp_path / "load.json"
    adapters = [f"{name}={folder}" for name, folder in adapter_paths().items()][:2]
    with ServerProcess([str(model_path()), "--adapters", *adapters], tmp_path / "log") as served:
        served.wait_ready(120)
        names = [pair.partition("=")[0] for pair in adapters]
        arguments = ["--url", f"{served.url}/v1", "--workload", workload, "--rate", "20", "--num-prompts", "40"]
        arguments += ["--output-len", "8", "--ignore-eos", "--lora-modules", *names, "--json", str(path)]
        assert main(["bench", "serve", *arguments]) == 0
    figures = json.loads(path.read_text())["results"]
    assert (figures["num_ok"], figures["output_tokens"]) == (40, 320)
    clients = figures["fairness"]["clients"]
    assert len(clients) == 4
    assert sum(client["share"] for client in clients.values()) == pytest.approx(1.0)
    counts = [client["num_requests"] for client in clients.values()]
    assert (counts[0] > 24) == (workload == "flood")
