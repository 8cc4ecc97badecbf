"""Makes a decoder from a model folder; everything that needs a model starts here."""

from __future__ import annotations

from pathlib import Path

import torch

from evenflow.base.errors import ConfigError
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.decoder import Decoder
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.registry import FAMILIES
from evenflow.serving.models.weights import load_weights
from evenflow.serving.parallel.group import Group

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def resolve_dtype(name: str, device: torch.device | str = "cpu") -> torch.dtype:
    """``auto``: bf16 on a GPU and on a CPU with AMX or AVX512-BF16, else fp32. Raises ConfigError for another name."""
    if name in _DTYPES:
        return _DTYPES[name]
    if name != "auto":
        raise ConfigError(f"dtype is {name!r}; allowed: auto, {', '.join(_DTYPES)}")
    if torch.device(device).type == "cuda" or has_fast_bfloat16():
        return torch.bfloat16
    return torch.float32


def has_fast_bfloat16() -> bool:
    """True if the CPU multiplies bf16 in hardware; elsewhere it is converted and slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(flag, False) for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def load_model(
    path: str | Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    group: Group | None = None,
    shard: Shard | None = None,
) -> Decoder:
    """Read a folder's weights, or a shard of them, into a decoder of ``config``. ``bind`` it before use. Raises ModelError."""
    make: type[Decoder] = FAMILIES[config.architecture].decoder_class()
    return make(config, load_weights(path, config, dtype, torch.device(device), shard), group, shard)


__all__ = ["has_fast_bfloat16", "load_model", "resolve_dtype"]
