"""Backends by name, and which one suits a device, a dtype and a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evenflow.base.registry import Registry
from evenflow.serving.core.shape import ModelShape

ATTENTION_BACKENDS = Registry(
    "attention backend",
    {
        "torch": "evenflow.serving.backends.torch_attention:TorchAttention",
        "cpu": "evenflow.serving.backends.cpu_attention:CPUAttention",
    },
)
"""Constructors take (storage, cos_PE, sin_PE, sm_scale): see ``AttentionBackend``."""

LORA_BACKENDS = Registry(
    "LoRA backend",
    {
        "torch": "evenflow.serving.backends.torch_lora:TorchLoRA",
        "cpu": "evenflow.serving.backends.cpu_lora:CPULoRA",
        "gather": "evenflow.serving.backends.gather_lora:GatherLoRA",
        "padded": "evenflow.serving.backends.padded_lora:PaddedLoRA",
    },
)
"""Constructors take (storage)."""


@dataclass(frozen=True, slots=True)
class BackendNames:
    """One name for each seam."""

    attention: str
    lora: str


def choose(device: torch.device, dtype: torch.dtype, shape: ModelShape) -> BackendNames:
    """Names of the fastest backends that serve this model here."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
        return BackendNames("torch", "torch")
    return BackendNames("torch" if shape.head_dim % 16 else "cpu", "cpu")
