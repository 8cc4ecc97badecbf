"""The Triton kernels compile for GPUs that are not there, without spills and with whole-vector memory accesses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CHILD = Path(__file__).with_name("compile_kernels.py")
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Most shared memory of one block, of A100 and H100."""
BY_DEFAULT = ["rotate_and_write", "attend_tiles few", "merge_parts", "shrink decode", "expand decode"]
FURTHER = [
    "attend_tiles many",
    "attend_tiles window few",
    "attend_tiles window many",
    "shrink prompt",
    "expand prompt",
    "shrink decode down",
    "expand decode down",
]

SEEN_LESS = ["attend_tiles odd few", "attend_tiles odd many"]
SEEN_LESS += [f"{kernel} fp32 {kind}" for kernel in ("shrink", "expand") for kind in ("decode", "prompt")]
SEEN_LESS += ["attend_tiles fp32 few", "attend_tiles fp32 many"]
"""fp32 is for tests of the engine: it has to compile and fit, no more."""


def compiled(arch: int, names: list[str]) -> list[dict]:
    """In a process of its own: here the interpreter has taken the kernels' place."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, str(CHILD), str(arch), *names]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(arch: int, names: list[str]) -> None:
    kernels = compiled(arch, names)
    assert [kernel["name"] for kernel in kernels] == names
    for kernel in kernels:
        assert kernel["spill_stores"] == kernel["spill_loads"] == kernel["stack"] == 0, kernel
        assert kernel["shared"] <= SHARED_BYTES[arch], kernel
        instructions = kernel["instructions"]
        # bf16 one by one: the compiler has lost the alignment of rows, pages or columns.
        assert not [name for name in instructions if name.endswith(("b16", "u16"))], kernel
        if not kernel["name"].startswith(("rotate", "merge")):
            assert any("mma" in name for name in instructions), kernel
        if kernel["name"].startswith(("attend", "shrink")):
            assert "cp.async.cg.shared.global" in instructions, kernel


def test_kernels_of_a_decode_step_compile_for_an_h100():
    check(90, BY_DEFAULT)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_all_kernels_compile(arch):
    check(arch, BY_DEFAULT + FURTHER)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_for_other_shapes_and_fp32_compile_and_fit(arch):
    kernels = compiled(arch, SEEN_LESS)
    assert [kernel["name"] for kernel in kernels] == SEEN_LESS
    assert all(kernel["shared"] <= SHARED_BYTES[arch] for kernel in kernels), kernels
