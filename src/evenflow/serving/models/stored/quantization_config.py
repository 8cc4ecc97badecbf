"""``quantization_config`` of a model folder: which of the published ways its weights are stored in. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenflow.base.errors import ModelError

METHODS = ("gptq", "awq", "compressed-tensors", "fp8", "bitsandbytes", "evenflow")
_COMPRESSED = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """What a folder says of its weights, as far as it matters."""

    method: str
    """One of METHODS."""
    bits: int = 4
    group_size: int = -1
    """Inputs that share a scale; -1: all of an output."""
    zero_offset: int = 0
    """GPTQ: what is added to the stored zeros, 1 in its first format."""
    block: tuple[int, int] | None = None
    """FP8: outputs and inputs that share a scale; None: all inputs of an output, or all."""
    kind: str = ""
    """A form within the method: of compressed-tensors, or nf4, fp4 and int8 of bitsandbytes."""


def read_quantization_config(config: Mapping[str, Any]) -> QuantizationConfig | None:
    """From a parsed ``config.json``; None if weights are stored plain. Raises ModelError, naming what is not known here."""
    given = config.get("quantization_config")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ModelError(f"quantization_config is {str(given)[:60]!r}; allowed: an object")
    method = given.get("quant_method")
    if method is None and (given.get("load_in_4bit") or given.get("load_in_8bit")):
        method = "bitsandbytes"
    if method not in METHODS:
        raise ModelError(f"quantization_config.quant_method is {method!r}; supported: {', '.join(METHODS)}")
    return _READERS[method](given)


def folder_quantization(folder: Path) -> QuantizationConfig | None:
    """The same of a model folder."""
    return read_quantization_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _one_of(given: Mapping[str, Any], name: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
    value = given.get(name, default)
    if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
        raise ModelError(f"quantization_config.{name} is {value!r}; supported: {', '.join(map(str, allowed))}")
    return value


def _group(value: Any, where: str) -> int:
    if value is None:
        return -1
    if isinstance(value, bool) or not isinstance(value, int) or (value != -1 and value < 1):
        raise ModelError(f"{where} is {value!r}; allowed: -1, or 1 and more")
    return value


def _gptq(given: Mapping[str, Any]) -> QuantizationConfig:
    bits = _one_of(given, "bits", (4, 8))
    form = _one_of(given, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    group = _group(given.get("group_size"), "quantization_config.group_size")
    return QuantizationConfig("gptq", bits, group, zero_offset=1 if form == "gptq" else 0)


def _awq(given: Mapping[str, Any]) -> QuantizationConfig:
    _one_of(given, "version", ("gemm", "GEMM"), "gemm")
    bits = _one_of(given, "bits", (4,))
    return QuantizationConfig("awq", bits, _group(given.get("group_size"), "quantization_config.group_size"))


def _compressed(given: Mapping[str, Any]) -> QuantizationConfig:
    groups = given.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise ModelError("quantization_config.config_groups has not exactly one group; supported: one for all linears")
    (group,) = groups.values()
    weights = group.get("weights") or {}
    kind = group.get("format") or given.get("format")
    if kind not in _COMPRESSED:
        raise ModelError(f"quantization_config.format is {kind!r}; supported: {', '.join(_COMPRESSED)}")
    strategy = weights.get("strategy", "tensor")
    if strategy not in ("tensor", "channel", "group"):
        raise ModelError(f"quantization_config: the strategy of weights is {strategy!r}; supported: tensor, channel, group")
    bits = _one_of(weights, "num_bits", (4, 8))
    if weights.get("type", "int") == "float" and bits != 8:
        raise ModelError(f"quantization_config: weights are floats of {bits} bits; supported: 8")
    return QuantizationConfig("compressed-tensors", bits, _group(weights.get("group_size"), "group_size"), kind=kind)


def _fp8(given: Mapping[str, Any]) -> QuantizationConfig:
    size = given.get("weight_block_size")
    if size is not None and (not isinstance(size, list) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size)):
        raise ModelError(f"quantization_config.weight_block_size is {size!r}; allowed: two numbers, or null")
    return QuantizationConfig("fp8", 8, block=None if size is None else (size[0], size[1]))


def _bitsandbytes(given: Mapping[str, Any]) -> QuantizationConfig:
    if given.get("load_in_8bit"):
        return QuantizationConfig("bitsandbytes", 8, kind="int8")
    return QuantizationConfig("bitsandbytes", 4, kind=_one_of(given, "bnb_4bit_quant_type", ("nf4", "fp4"), "fp4"))


def _own(given: Mapping[str, Any]) -> QuantizationConfig:
    _one_of(given, "format", (1,))
    return QuantizationConfig("evenflow", kind=str(given.get("scheme", "")))


_READERS = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fp8": _fp8,
    "bitsandbytes": _bitsandbytes,
    "evenflow": _own,
}

__all__ = ["METHODS", "QuantizationConfig", "folder_quantization", "read_quantization_config"]
