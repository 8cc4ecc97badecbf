"""The GPU recipe runs through, on a toy shape in Triton's interpreter, on a machine without a web framework."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

RECIPE = Path(__file__).parents[2] / "benchmarks" / "recipes" / "gpu_lora.py"
WITHOUT = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fastapi", "starlette", "uvicorn", "msgspec", "zmq", "transformers", "peft"):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_it_measures_every_variant(tmp_path):
    sizes = ["--sequences", "2", "--context", "20", "--samples", "1", "--shape", "toy"]
    command = [sys.executable, "-c", WITHOUT, str(RECIPE), "--hardware", "none", "--out", str(tmp_path), *sizes]
    result = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=220)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "gpu_lora--none.json").read_text())["results"]
    assert set(found["step_over_base"]) == {"base", "unified", "slots", "padded", "gather"}
    assert all(result["row_bytes"] > 0 for by_variant in found["kernels"].values() for result in by_variant.values())
    assert found["kernels"]["o"]["slots"]["row_bytes"] == 4 * found["kernels"]["o"]["unified"]["row_bytes"]
