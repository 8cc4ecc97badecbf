"""Random PEFT adapters in ordinary folders, beside the random models of ``tiny``.

Both A and B are noise (a fresh PEFT adapter has B = 0 and does nothing), scaled so that each adapter
clearly changes what the model says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evenflow.serving.core.shape import MODULES
from evenflow.serving.models.model_config import ModelConfig


def make_adapter(
    path: str | Path,
    config: ModelConfig,
    *,
    rank: int = 8,
    alpha: float | None = None,
    target_modules: Sequence[str] = MODULES,
    rank_pattern: Mapping[str, int] | None = None,
    layers: Sequence[int] | None = None,
    strength: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Write an adapter for ``config`` at ``path`` as PEFT would save it, and return the path.

    ``strength``: size of the change against the module's own output, before LoRA's scale.
    ``changes`` are further fields of adapter_config.json (use_rslora, alpha_pattern, ...).
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "target_modules": list(target_modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "rank_pattern": dict(rank_pattern or {}),
        **({"layers_to_transform": list(layers)} if layers is not None else {}),
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config.shape.num_layers) if layers is None else layers:
        for module in MODULES:
            if module not in target_modules:
                continue
            block = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            name = f"model.layers.{layer}.{block}.{module}"
            inputs, outputs = config.shape.module_widths(module)
            r = _rank_of(name, rank, rank_pattern or {})
            a = torch.randn(r, inputs, generator=generator) / inputs**0.5
            b = strength * torch.randn(outputs, r, generator=generator) / r**0.5
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(dtype)
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _rank_of(name: str, rank: int, rank_pattern: Mapping[str, int]) -> int:
    for pattern, value in rank_pattern.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return rank


__all__ = ["make_adapter"]
