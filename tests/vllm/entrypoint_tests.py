"""vLLM's own tests of its HTTP entrypoints, pointed at this server: passed, failed, and why a file is left out.

    pip download --no-deps --no-binary vllm vllm==0.32.0          # whoever runs them fetches them; none is kept here
    python tests/vllm/entrypoint_tests.py --sources vllm-0.32.0 --model DIR --vllm-python PYTHON [--json FILE] [TEST ...]

``--model`` is a small chat model in a folder, which answers to every name that the tests ask for. ``--vllm-python`` is an
interpreter that has vLLM (whose types the tests import), pytest and pytest-asyncio. One server is started for all of them
and the options that a test gives its own server are not looked at: what depends on those fails, as does what depends on
the words of a certain model. The report names every test that failed with the last line of its failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

FOLDERS = ("openai", "anthropic", "serve", "tool_parsers")
"""Below tests/entrypoints. The others are of what is not served here (pooling, multimodal, speech, Cohere's API, weight
transfer) or of vLLM's own process (llm, launchers, cli, unit_tests, scale_out)."""
LEFT_OUT = {
    "prompt_embeds": "prompts as embeddings are not served",
    "tensorizer": "vLLM's own way to load weights",
    "lmeval": "measures a certain model",
    "harmony": "the format of a certain model",
    "mcp": "tools that the server itself runs",
    "parsable_context": "the format of a certain model",
    "_vlm": "images are not served",
    "collective_rpc": "vLLM's own processes",
    "test_optional_middleware": "starts vLLM's own process with options of its own",
    "test_uds": "starts vLLM's own process with options of its own",
    "sagemaker_handler": "hooks inside vLLM's process",
    "sagemaker_middleware": "hooks inside vLLM's process",
    "openai_tool_parser": "the format of a certain model",
    "render": "vLLM's own rendering server",
    "watermarking": "inside vLLM's process",
    "test_serving_chat": "classes inside vLLM",
    "thinking_token_budget": "a budget for thoughts is not served",
    "test_batched_chat": "several conversations in one body are not served",
    "root_path": "starts vLLM's own process with options of its own",
}
"""Part of a file's name to the reason why it is not run."""
STUB = '''
import os

import anthropic
import openai

VLLM_PATH, ROCM_EXTRA_ARGS = None, []


class RemoteOpenAIServer:
    """In place of vLLM's: the server that runs already, whatever is asked for."""

    DUMMY_API_KEY = "token-abc123"

    def __init__(self, *args, **kwargs):
        self.url_root = os.environ["SERVER_UNDER_TEST"]

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def url_for(self, *parts):
        return self.url_root + "/" + "/".join(parts)

    def get_client(self, **kwargs):
        return openai.OpenAI(**self._settings(kwargs))

    def get_async_client(self, **kwargs):
        return openai.AsyncOpenAI(**self._settings(kwargs))

    def get_client_anthropic(self, **kwargs):
        return anthropic.Anthropic(**{**self._settings(kwargs), "base_url": self.url_root})

    def get_async_client_anthropic(self, **kwargs):
        return anthropic.AsyncAnthropic(**{**self._settings(kwargs), "base_url": self.url_root})

    def _settings(self, kwargs):
        return {"timeout": 60, "base_url": self.url_for("v1"), "api_key": self.DUMMY_API_KEY, "max_retries": 0, **kwargs}
'''
NAME = re.compile(r'^\s*(?:MODEL\w*)\s*=\s*"([\w.-]+/[\w.-]+)"', re.MULTILINE)


def chosen(tests: Path) -> list[Path]:
    """Files whose tests talk to a server over HTTP."""
    files = [file for folder in FOLDERS for file in sorted((tests / "entrypoints" / folder).rglob("test_*.py"))]
    return [
        file
        for file in files
        if "RemoteOpenAIServer" in file.read_text() + _conftest(file) and not any(part in file.name for part in LEFT_OUT)
    ]


def _conftest(file: Path) -> str:
    beside = file.parent / "conftest.py"
    return beside.read_text() if beside.exists() else ""


def copy_with_stub(sources: Path, folder: Path) -> Path:
    """The tests, with vLLM's own starting of servers replaced."""
    tests = folder / "tests"
    shutil.copytree(sources / "tests" / "entrypoints", tests / "entrypoints")
    (tests / "__init__.py").write_text("")
    (tests / "utils.py").write_text(STUB)
    return tests


class Served:
    """This server, with every name that the tests ask for."""

    def __init__(self, model: Path, names: list[str], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "evenflow.cli.main", "serve", str(model), "--port", str(port), "--open"]
        command += ["--served-model-name", *names, "--max-model-len", "2048", "--memory", "1GiB", "--max-logprobs", "1024"]
        command += ["--enable-tokenizer-info-endpoint", "--tool-call-parser", "hermes"]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + 400
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)


def report(xml: Path) -> dict[str, object]:
    """What became of every test, from pytest's own report."""
    count: Counter[str] = Counter()
    failures: dict[str, str] = {}
    for case in ElementTree.parse(xml).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.entrypoints.')}::{case.get('name')}"
        fault = next((child for child in case if child.tag in ("failure", "error")), None)
        if fault is not None:
            count["failed"] += 1
            failures[name] = (fault.get("message") or "").strip().splitlines()[-1:][0][:300] if fault.get("message") else ""
        elif any(child.tag == "skipped" for child in case):
            count["skipped"] += 1
        else:
            count["passed"] += 1
    return {**count, "failures": failures}


def main() -> int:
    """Run them and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True, help="folder of vLLM's unpacked source distribution")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vllm-python", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="where the report goes")
    parser.add_argument("tests", nargs="*", help="parts of file names; all without any")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tests = copy_with_stub(args.sources, folder)
        files = [file for file in chosen(tests) if not args.tests or any(part in str(file) for part in args.tests)]
        names = sorted({found for file in files for found in NAME.findall(file.read_text() + _conftest(file))})
        served = Served(args.model, ["base", *names], folder / "server.log")
        try:
            xml = folder / "report.xml"
            command = [args.vllm_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "60"]
            command += ["--junitxml", xml, "--rootdir", folder, "-o", "asyncio_mode=auto", *files]
            environment = {**os.environ, "SERVER_UNDER_TEST": served.url, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
            subprocess.run(command, cwd=folder, env=environment, check=False)
        finally:
            served.close()
        said = {"files": len(files), "left out": LEFT_OUT, **report(xml)}
    text = json.dumps(said, indent=1, ensure_ascii=False)
    if args.json is not None:
        args.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
