"""Backends by name, and which one suits a device, a dtype and a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evenflow.base.registry import Registry
from evenflow.serving.core.shape import ModelShape

ATTENTION_BACKENDS = Registry(
    "attention backend",
    {
        "torch": "evenflow.serving.backends.attention.torch_attention:TorchAttention",
        "cpu": "evenflow.serving.backends.attention.cpu_attention:CPUAttention",
        "triton": "evenflow.serving.backends.attention.triton_attention:TritonAttention",
        "flashinfer": "evenflow.serving.backends.attention.flashinfer_attention:FlashInferAttention",
    },
)
"""Constructors take (storage, cos_PE, sin_PE, sm_scale): see ``AttentionBackend``."""

LORA_BACKENDS = Registry(
    "LoRA backend",
    {
        "torch": "evenflow.serving.backends.lora.torch_lora:TorchLoRA",
        "cpu": "evenflow.serving.backends.lora.cpu_lora:CPULoRA",
        "triton": "evenflow.serving.backends.lora.triton_lora:TritonLoRA",
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
    if dtype not in (torch.bfloat16, torch.float32) or device.type not in ("cpu", "cuda"):
        return BackendNames("torch", "torch")
    if device.type == "cuda":
        return BackendNames("triton", "triton")
    return BackendNames("torch" if shape.head_dim % 16 else "cpu", "cpu")


def by_name(kernels: str) -> BackendNames:
    """The backends that one name for the kernels, as a user gives it, stands for.

    FlashInfer has no LoRA over factor rows in an arena; Triton's goes with it.
    """
    return BackendNames(kernels, "triton" if kernels == "flashinfer" else kernels)
