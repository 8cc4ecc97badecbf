"""The backend that is chosen can be made and is the fast one where there is one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.choose import ATTENTION_BACKENDS, LORA_BACKENDS, BackendNames, choose
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.memory.layout import ArenaLayout

CPU = torch.device("cpu")


def shape(head_dim: int) -> ModelShape:
    return ModelShape(2, 48, 80, 4, 2, head_dim, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("head_dim", [8, 24, 32, 48, 128])
def test_the_choice_works(dtype, head_dim):
    names = choose(CPU, dtype, shape(head_dim))
    storage = Storage(ArenaLayout(shape(head_dim), dtype.itemsize), 2, dtype, CPU)
    tables = torch.ones(4, head_dim // 2), torch.zeros(4, head_dim // 2)
    ATTENTION_BACKENDS.load(names.attention)(storage, *tables, 1.0)
    LORA_BACKENDS.load(names.lora)(storage)
    is_fast = dtype != torch.float16
    assert names.lora == ("cpu" if is_fast else "torch")
    assert names.attention == ("cpu" if is_fast and head_dim % 16 == 0 else "torch")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cuda_gets_triton(dtype):
    assert choose(torch.device("cuda"), dtype, shape(64)) == BackendNames("triton", "triton")


def test_other_devices_and_dtypes_get_what_runs_anywhere():
    assert choose(torch.device("cuda"), torch.float16, shape(64)) == BackendNames("torch", "torch")
    assert choose(torch.device("mps"), torch.bfloat16, shape(64)) == BackendNames("torch", "torch")


def test_naming_and_choosing_backends_imports_neither_triton_nor_cuda():
    code = (
        "import sys, torch; from evenflow.serving.backends.choose import choose, LORA_BACKENDS;"
        "from evenflow.serving.core.shape import ModelShape;"
        "LORA_BACKENDS.load(choose(torch.device('cpu'), torch.float32, ModelShape(2, 48, 80, 4, 2, 16, 10)).lora);"
        "sys.exit('triton' in sys.modules or torch.cuda.is_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_cpu_backends_refuse_what_they_cannot_do():
    storage = Storage(ArenaLayout(shape(8), 4), 2, torch.float32, CPU)
    with pytest.raises(ConfigError, match="head_dim 8"):
        ATTENTION_BACKENDS.load("cpu")(storage, torch.ones(4, 4), torch.ones(4, 4), 1.0)
    storage = Storage(ArenaLayout(shape(16), 2), 2, torch.float16, CPU)
    with pytest.raises(ConfigError, match="float16"):
        LORA_BACKENDS.load("cpu")(storage)
