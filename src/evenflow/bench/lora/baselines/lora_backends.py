"""LoRA backends by name, those that only a benchmark compares with beside those that serve."""

from __future__ import annotations

from evenflow.base.registry import Registry
from evenflow.serving.backends.choose import LORA_BACKENDS
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_backend import LoRABackend

BASELINE_LORA_BACKENDS = Registry(
    "LoRA backend",
    {
        "gather": "evenflow.bench.lora.baselines.gather_lora:GatherLoRA",
        "padded": "evenflow.bench.lora.baselines.padded_lora:PaddedLoRA",
    },
)
"""Backends that no server chooses. Constructors take (storage), like those of ``LORA_BACKENDS``."""


def lora_backend(name: str, storage: Storage) -> LoRABackend:
    """The backend called ``name`` over ``storage``, baseline or served. Raises RegistryError for an unknown name."""
    registry = BASELINE_LORA_BACKENDS if name in BASELINE_LORA_BACKENDS else LORA_BACKENDS
    backend: LoRABackend = registry.load(name)(storage)
    return backend


__all__ = ["BASELINE_LORA_BACKENDS", "lora_backend"]
