"""Makes a decoder from a model folder; everything that needs a model starts here."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from evenflow.base.errors import ConfigError
from evenflow.base.progress import Tell, tell_nobody
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.decoder import Decoder
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.stored.stored_weights import weight_files
from evenflow.serving.models.weights import load_weights
from evenflow.serving.parallel.group import Group
from evenflow.serving.quant.matrix_cache import MatrixCache, model_digest
from evenflow.serving.quant.schemes import find_quantization

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
    quantization: str = "none",
    cache_folder: Path | None = None,
    tell: Tell = tell_nobody,
) -> Decoder:
    """Read a folder's weights, or a shard of them, into a decoder of ``config``. ``bind`` it before use. Raises ModelError.

    ``quantization``: a name of ``quant.schemes``; matrices are then kept in ``cache_folder`` for the next time. Raises
    ConfigError for one that there is not, or that this device does not compute with.
    """
    device = torch.device(device)
    chosen = find_quantization(quantization)
    if chosen is not None and device.type != "cpu":
        raise ConfigError(f"quantization is {quantization!r}; it is computed on the CPU alone, and the device is {device}")
    make: type[Decoder] = config.family.load("decoder")
    with contextlib.ExitStack() as stack:
        cache = None
        if chosen is not None and cache_folder is not None:
            part = "whole" if shard is None else f"{shard.rank} of {shard.world_size}"
            digest = model_digest(weight_files(path), chosen, part)
            cache = stack.enter_context(MatrixCache(cache_folder, digest))
        weights = load_weights(path, config, dtype, device, shard, chosen, cache, tell)
        return make(config, weights, group, shard)


__all__ = ["has_fast_bfloat16", "load_model", "resolve_dtype"]
