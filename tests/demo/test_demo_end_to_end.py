"""The demo as a user runs it: a real server, real HTTP, a report, and nothing left behind."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from evenflow.base.errors import ConfigError
from evenflow.bench.load.server_process import ServerProcess
from evenflow.demo.assets import adapter_paths, model_path
from evenflow.demo.run import DemoOptions, run_demo

pytestmark = pytest.mark.multiprocess


def _members(session: int) -> list[str]:
    """Processes of a session (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found


def test_a_small_demo_runs_to_its_end(tmp_path):
    out = io.StringIO()
    report = tmp_path / "demo-report.html"
    options = DemoOptions(report=report, num_adapters=24, seconds=3.0, greedy=32)
    assert run_demo(options, Console(file=out, width=80)) == 0
    text = out.getvalue()
    assert text.count("30 adapters registered") == 2
    assert "3 honey cakes cost 18 shells." in text
    assert "3 HONEY CAKES COST 18 SHELLS!!!" in text
    assert report.read_text().count("<svg") == 2


def test_a_server_that_cannot_start_tells_why(tmp_path):
    with (
        ServerProcess([str(tmp_path / "no-model")], tmp_path / "log") as server,
        pytest.raises(ConfigError, match=r"(?s)ended with exit status 1.*no-model"),
    ):
        server.wait_ready(60.0)


@pytest.mark.slow
def test_the_openai_example_talks_to_a_server_that_leaves_nothing_behind(tmp_path, capsys):
    arguments = [str(model_path()), "--served-model-name", "base", "--memory", "16MiB"]
    arguments += ["--adapters", f"pirate={adapter_paths()['pirate']}"]
    path = Path(__file__).parents[2] / "examples" / "openai_chat.py"
    spec = importlib.util.spec_from_file_location("example_openai_chat", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with ServerProcess(arguments, tmp_path / "log") as server:
        server.wait_ready(120.0)
        session = server._process.pid
        assert len(_members(session)) >= 2, "the server and its engine"
        assert module.main(f"{server.url}/v1", "pirate", "anna") == "Arr! Th' lighthouse be on Anchor Quay, matey!"
    assert "models: base, pirate" in capsys.readouterr().out
    assert _members(session) == []
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{server.url}/health")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["starting the server", "four clients at once"])
def test_an_interrupted_demo_cleans_up(tmp_path, moment, number):
    before = set(Path("/proc").glob("[0-9]*"))
    command = [sys.executable, "-u", "-m", "evenflow.cli.main", "demo", "--seconds", "20", "--num-adapters", "30"]
    process = subprocess.Popen(
        [*command, "--report", str(tmp_path / "r.html")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for line in process.stdout:
        if moment in line:
            break
    process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait(30) == 130, rest
    ours = [p for p in set(Path("/proc").glob("[0-9]*")) - before if (p / "cmdline").exists()]
    left = [p for p in ours if str(tmp_path).encode() in (p / "cmdline").read_bytes()]
    assert left == []
    assert list(tmp_path.glob("evenflow-demo-*")) == []
    assert not (tmp_path / "r.html").exists()
