"""The package as its users meet it: public names, what importing costs, and what the wheel holds."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import evenflow

ROOT = Path(__file__).parents[1]

PUBLIC = {
    "EvenFlowError": "evenflow.base.errors",
    "LLM": "evenflow.serving.client.llm",
    "SamplingParams": "evenflow.serving.core.sampling",
    "__version__": "evenflow",
}
"""Public name -> the module in which it is defined. Changing this list changes what users may rely on."""

HEAVY = ("torch", "numba", "triton", "transformers", "fastapi")
WITHOUT = {
    "evenflow": HEAVY,
    "evenflow.fairness": HEAVY,
    "evenflow.serving.text": HEAVY,
    "evenflow.serving.client": HEAVY,
    "evenflow.serving.client.llm": HEAVY,
    "evenflow.serving.server.app": tuple(name for name in HEAVY if name != "fastapi"),
}
"""Module -> packages that importing it must not load. The server is a fastapi application, so that it loads fastapi."""


def test_the_public_names_are_these():
    assert sorted(evenflow.__all__) == sorted(PUBLIC)
    for name, module in PUBLIC.items():
        assert getattr(evenflow, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        evenflow.Engine  # noqa: B018
    code = "import evenflow; print(*dir(evenflow))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert seen == sorted(PUBLIC), "dir() in a fresh interpreter shows what can be imported, before anything has been"


@pytest.mark.parametrize("module", WITHOUT)
def test_importing_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*(name for name in {WITHOUT[module]!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_importing_takes_less_than_fifty_milliseconds():
    """Of the processor's time, the best of a few: what other processes do must not count."""
    code = "import time; began = time.process_time(); import evenflow; print(time.process_time() - began)"
    times_s = []
    for _ in range(10):
        times_s.append(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout))
        if times_s[-1] < 0.05:
            break
    assert min(times_s) < 0.05, times_s


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "src/evenflow/py.typed").is_file()


def test_the_wheel_holds_what_runs_and_no_training(tmp_path):
    build = pytest.importorskip("hatchling.builders.wheel", reason="pip install hatchling")
    (path,) = build.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(path).namelist()
    assert "evenflow/py.typed" in names
    assert "evenflow/demo/assets/questions.json" in names
    assert "evenflow/demo/assets/base/model.safetensors" in names
    assert not [name for name in names if re.search(r"embedded_model|tidewick|/train/|^tools|^tests|^benchmarks", name)]
    assert all(name.startswith(("evenflow/", "evenflow-")) for name in names)


def test_every_folder_of_tests_is_run_by_default_or_has_an_environment_of_its_own():
    import tomllib

    root = Path(__file__).parents[1]
    paths = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    there = {f"tests/{path.name}" for path in (root / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
    assert there - set(paths) == {f"tests/{name}" for name in ("clients", "console", "on_ray", "otel", "remote", "vllm")}
