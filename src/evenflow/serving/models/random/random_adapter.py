"""Random PEFT adapters in ordinary folders, beside the random models of ``random_model``.

Both A and B are noise (a fresh PEFT adapter has B = 0 and does nothing), scaled so that each adapter
clearly changes what the model says. What a PEFT folder looks like is known to ``adapters.peft_format`` alone.

Two makers of random adapters stay apart because their numbers are made differently: the demo draws with numpy, since
its process has no torch (``demo.assets``), and the LoRA benchmark cuts gigabytes of row files from one block of noise
without going through PEFT folders (``bench.lora.row_adapters``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evenflow.serving.adapters.peft_format import WEIGHTS_FILE, factor_names, module_path, write_config
from evenflow.serving.core.shape import BLOCK_OF, MODULES
from evenflow.serving.models.model_config import ModelConfig


def make_adapter(
    path: str | Path,
    config: ModelConfig,
    *,
    lora_rank: int = 8,
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
    fields = {
        "rank_pattern": dict(rank_pattern or {}),
        **({"layers_to_transform": list(layers)} if layers is not None else {}),
        **changes,
    }
    write_config(
        folder, lora_rank=lora_rank, alpha=lora_rank if alpha is None else alpha, target_modules=target_modules, **fields
    )
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config.shape.num_layers) if layers is None else layers:
        mlp_block = config.shape.mlp_block(layer)
        for module in MODULES:
            if module not in target_modules or not (mlp_block or BLOCK_OF[module] != "mlp"):
                continue
            inputs, outputs = config.shape.module_widths(module)
            r = _lora_rank_of(module_path(layer, module, mlp_block), lora_rank, rank_pattern or {})
            a = torch.randn(r, inputs, generator=generator) / inputs**0.5
            b = strength * torch.randn(outputs, r, generator=generator) / r**0.5
            name_a, name_b = factor_names(layer, module, mlp_block)
            tensors[name_a], tensors[name_b] = a.to(dtype), b.to(dtype)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def _lora_rank_of(name: str, lora_rank: int, rank_pattern: Mapping[str, int]) -> int:
    for pattern, value in rank_pattern.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return lora_rank


__all__ = ["make_adapter"]
