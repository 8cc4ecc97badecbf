"""How PEFT writes a LoRA adapter down: names of files and tensors, and the config of a plain one. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evenflow.serving.core.shape import BLOCK_OF

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def module_path(layer: int, module: str, mlp_block: str = "mlp") -> str:
    """The module's path inside the base model, which the patterns of adapter_config.json match against.

    ``mlp_block``: see ``ModelShape.mlp_block``.
    """
    return f"model.layers.{layer}.{mlp_block if BLOCK_OF[module] == 'mlp' else BLOCK_OF[module]}.{module}"


def factor_names(layer: int, module: str, mlp_block: str = "mlp") -> tuple[str, str]:
    """Names of the module's A [lora_rank, input width] and B [output width, lora_rank] in the safetensors file."""
    prefix = f"base_model.model.{module_path(layer, module, mlp_block)}"
    return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"


def write_config(folder: Path, *, lora_rank: int, alpha: float, target_modules: Sequence[str], **changes: Any) -> None:
    """Write the adapter_config.json of a plain LoRA adapter into ``folder``, which is made if it does not exist.

    ``changes`` are further fields of the file, or other values for its fields (use_rslora, rank_pattern, ...).
    """
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora_rank,
        "lora_alpha": alpha,
        "target_modules": list(target_modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(raw, indent=2), encoding="utf-8")


__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "factor_names", "module_path", "write_config"]
