"""Read a PEFT LoRA folder, strictly: every tensor is used or the adapter is refused, with all reasons at once.

numpy only. The result knows layers, modules, ranks and scales; not pages (``image``) and not names
(``catalog``). What is read is bounded before it is parsed: bytes, tensors, and what a rank can need. Time and memory are
bounded by the process that this runs in (``bounded_reading``). Legend: R rank, I input width, O output width of a module.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evenflow.base.errors import AdapterNotFound, AdapterRejected
from evenflow.base.logs import printable
from evenflow.serving.adapters.adapter_files import FileState, OpenedFile, read_file
from evenflow.serving.adapters.peft_config import LoraRules, read_rules
from evenflow.serving.adapters.peft_format import BLOCK_OF, CONFIG_FILE, WEIGHTS_FILE, module_path
from evenflow.serving.adapters.safetensors_arrays import FileTensors
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.core.shape import MODULES, ModelShape

_TENSOR = re.compile(
    r"base_model\.model\.(?P<path>model\.layers\.(?P<layer>[0-9]{1,6})\.(?P<block>self_attn|mlp)\.(?P<module>\w+))"
    r"\.lora_(?P<part>[AB])\.weight"
)
_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 8 << 20
_REASON_CHARACTERS = 300
_MOST_REASONS = 32
_REASONS_PER_KIND = 4
"""So many faults of one kind are spelled out; the rest are counted."""

Target = tuple[int, str]
"""(layer, module)"""


@dataclass(frozen=True, slots=True, eq=False)
class PeftAdapter:
    """One adapter as read from its folder, checked against the base model's shape."""

    digest: AdapterDigest
    """sha256 over ranks, scales and stored weights of every module: what decides its outputs, and nothing else."""
    signature: AdapterSignature
    target_modules: tuple[str, ...]
    """The MODULES it adapts in any layer."""
    base_model: str | None
    """Name or path of the base model it was trained on, if the folder says."""
    warnings: tuple[str, ...]
    """What its config holds that is not known and was ignored."""
    states: tuple[FileState, FileState]
    """Of config and weights as they were read."""
    _tensors: FileTensors
    _names: Mapping[Target, tuple[str, str]]
    _scales: Mapping[Target, float]

    def a(self, layer: int, module: str) -> np.ndarray:
        """fp32 [R, I]."""
        return self._tensors.as_float32(self._names[layer, module][0])

    def b_scaled(self, layer: int, module: str) -> np.ndarray:
        """B transposed, times the LoRA scale, in fp32: [R, O]; infinite where that overflows."""
        b_OR = self._tensors.as_float32(self._names[layer, module][1])
        with np.errstate(over="ignore"):
            return b_OR.T * np.float32(self._scales[layer, module])

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every adapted (layer, module)."""
        return tuple(self._names)


def read_adapter(
    path: str | Path, shape: ModelShape, max_lora_rank: int | None = None, allowed: Sequence[Path] = ()
) -> PeftAdapter:
    """Read the adapter in folder ``path`` for a base model of ``shape``. ``max_lora_rank``: the highest that is accepted.

    ``allowed``: folders beside its own where its files may lie. Raises AdapterNotFound if there is no adapter,
    AdapterRejected with every reason found if it cannot be served faithfully, AdapterUnavailable where the host is at fault.
    """
    folder = Path(path)
    reasons: list[str] = []
    warnings: list[str] = []
    try:
        file = read_file(folder, CONFIG_FILE, allowed=allowed, max_bytes=_MAX_CONFIG_BYTES)
    except FileNotFoundError:
        is_folder = folder.is_dir()
        raise AdapterNotFound(
            f"no adapter at {folder}: {'it holds no ' + CONFIG_FILE if is_folder else 'no such folder'}"
        ) from None
    except (NotADirectoryError, ValueError, OSError) as error:
        raise AdapterRejected(str(folder), [_in_words(error, CONFIG_FILE)]) from None
    config = _parse_config(file, reasons)
    rules = read_rules(config, reasons, warnings) if config is not None else None
    weights = _read_weights(folder, allowed, max_weights_bytes(shape, max_lora_rank), reasons)
    tensors = _parse_weights(weights, reasons) if weights is not None else None
    if rules is None or tensors is None or weights is None:
        raise AdapterRejected(str(folder), _told(reasons))
    _check_lora_ranks(rules, shape, max_lora_rank, reasons)
    names = _match(tensors, rules, shape, reasons)
    if not reasons:
        reasons += _summarised("holds NaN or infinity", [name for name in tensors.shapes if not _is_finite(tensors, name)])
    if reasons:
        raise AdapterRejected(str(folder), _told(reasons))
    scales = {target: rules.scale_of(module_path(*target)) for target in names}
    lora_ranks = tuple(
        tuple(tensors.shapes[names[layer, m][0]][0] if (layer, m) in names else 0 for m in MODULES)
        for layer in range(shape.num_layers)
    )
    return PeftAdapter(
        digest=_digest(tensors, names, scales),
        signature=AdapterSignature(lora_ranks),
        target_modules=tuple(m for m in MODULES if any((layer, m) in names for layer in range(shape.num_layers))),
        base_model=rules.base_model,
        warnings=tuple(_clean(warning) for warning in warnings[:_REASONS_PER_KIND]),
        states=(file.state, weights.state),
        _tensors=tensors,
        _names=names,
        _scales=scales,
    )


def max_weights_bytes(shape: ModelShape, max_lora_rank: int | None) -> int:
    """The largest file that can hold an adapter of the highest LoRA rank, in fp32, for this model."""
    lora_rank = min(max_lora_rank or shape.hidden_size, shape.hidden_size)
    widths = sum(sum(shape.module_widths(module)) for module in MODULES)
    return _MAX_HEADER_BYTES + 4 * shape.num_layers * lora_rank * widths


def _parse_config(file: OpenedFile, reasons: list[str]) -> Mapping[str, Any] | None:
    try:
        config = json.loads(file.data)
    except (ValueError, RecursionError) as error:
        reasons.append(_in_words(error, CONFIG_FILE))
        return None
    if not isinstance(config, dict):
        reasons.append(f"{CONFIG_FILE} holds no JSON object")
        return None
    return config


def _read_weights(folder: Path, allowed: Sequence[Path], max_bytes: int, reasons: list[str]) -> OpenedFile | None:
    try:
        return read_file(folder, WEIGHTS_FILE, allowed=allowed, max_bytes=max_bytes)
    except FileNotFoundError:
        pickle = (
            " (adapter_model.bin is a pickle; save it again as safetensors)" if (folder / "adapter_model.bin").exists() else ""
        )
        reasons.append(f"{WEIGHTS_FILE} is missing{pickle}")
    except (OSError, ValueError) as error:
        reasons.append(_in_words(error, WEIGHTS_FILE))
    return None


def _parse_weights(file: OpenedFile, reasons: list[str]) -> FileTensors | None:
    try:
        return FileTensors(file.data, WEIGHTS_FILE, max_header_bytes=_MAX_HEADER_BYTES)
    except ValueError as error:
        reasons.append(str(error))
        return None


def _in_words(error: Exception, name: str) -> str:
    """Of what a file could not be read, without quoting the file."""
    if isinstance(error, OSError):
        return f"{name} cannot be read ({error.strerror})"
    if isinstance(error, json.JSONDecodeError):
        return f"{name} cannot be read: it is no JSON at line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"{name} cannot be read: it is not UTF-8 at byte {error.start}"
    if isinstance(error, RecursionError):
        return f"{name} cannot be read: it is nested too deeply"
    return str(error)


def _told(reasons: list[str]) -> list[str]:
    told = [_clean(reason) for reason in reasons[:_MOST_REASONS]]
    return told if len(reasons) <= _MOST_REASONS else [*told, f"and {len(reasons) - _MOST_REASONS} more faults"]


def _clean(reason: str) -> str:
    """On one line and of bounded length: it quotes what a stranger wrote."""
    shown = printable(reason)
    return shown if len(shown) <= _REASON_CHARACTERS else shown[:_REASON_CHARACTERS] + " ..."


def _check_lora_ranks(rules: LoraRules, shape: ModelShape, max_lora_rank: int | None, reasons: list[str]) -> None:
    highest = max(rules.lora_rank, *rules.rank_pattern.values(), 1)
    if max_lora_rank is not None and highest > max_lora_rank:
        reasons.append(f"rank {highest} is above the configured maximum of {max_lora_rank}")
    elif highest > shape.hidden_size:
        reasons.append(f"rank {highest} is above the model's hidden size of {shape.hidden_size}")


def _match(tensors: FileTensors, rules: LoraRules, shape: ModelShape, reasons: list[str]) -> dict[Target, tuple[str, str]]:
    """Names of A and B of every adapted target; faults go to ``reasons``."""
    found: dict[Target, dict[str, str]] = {}
    unknown: list[str] = []
    for name in tensors.shapes:
        match = _TENSOR.fullmatch(name)
        known = match is not None and BLOCK_OF.get(match["module"]) == match["block"] and int(match["layer"]) < shape.num_layers
        # "007" would be a second name for layer 7.
        if match is None or not known or str(int(match["layer"])) != match["layer"]:
            unknown.append(name)
        else:
            found.setdefault((int(match["layer"]), match["module"]), {})[match["part"]] = name
    reasons += _summarised("belongs to no linear of the base model that can carry LoRA", unknown)
    targeted = {(layer, m) for layer in range(shape.num_layers) for m in MODULES if rules.is_target(module_path(layer, m))}
    for outside in ("model.embed_tokens", "lm_head"):
        if rules.is_target(outside) and not any(outside in name for name in unknown):
            reasons.append(f"target_modules names {outside}; LoRA on embeddings and the output head is not supported")
    stray = sorted(module_path(*target) for target in set(found) - targeted)
    reasons += _summarised("has tensors, but target_modules does not name it", stray)
    reasons += _summarised(
        "is named by target_modules, but has no tensors", sorted(module_path(*s) for s in targeted - set(found))
    )
    if not found and not unknown:
        reasons.append(f"{WEIGHTS_FILE} holds no tensors")
    names: dict[Target, tuple[str, str]] = {}
    wrong: list[str] = []
    for target in sorted(found):
        if len(found[target]) < 2:
            wrong.append(f"{module_path(*target)} has lora_{next(iter(found[target]))} alone")
            continue
        names[target] = found[target]["A"], found[target]["B"]
        inputs, outputs = shape.module_widths(target[1])
        lora_rank = rules.lora_rank_of(module_path(*target))
        for name, expected in zip(names[target], ((lora_rank, inputs), (outputs, lora_rank))):
            if tensors.shapes[name] != expected:
                wrong.append(f"{name} has shape {list(tensors.shapes[name])}, config and base model say {list(expected)}")
            elif not tensors.is_float(name):
                wrong.append(f"{name} is {tensors.dtypes[name]}; supported: F32, F16, BF16")
    reasons += [*wrong[:_REASONS_PER_KIND], *_rest(wrong)]
    return names


def _is_finite(tensors: FileTensors, name: str) -> bool:
    return bool(np.isfinite(tensors.as_float32(name)).all())


def _digest(tensors: FileTensors, names: Mapping[Target, tuple[str, str]], scales: Mapping[Target, float]) -> AdapterDigest:
    digest = hashlib.sha256()
    for target in sorted(names):
        for name in names[target]:
            header = f"{target[0]} {target[1]} {scales[target].hex()} {tensors.dtypes[name]} {list(tensors.shapes[name])}\n"
            digest.update(header.encode())
            digest.update(tensors.raw(name))
    return AdapterDigest(digest.hexdigest())


def _summarised(fault: str, subjects: list[str]) -> list[str]:
    return [f"{subject} {fault}" for subject in subjects[:_REASONS_PER_KIND]] + _rest(subjects)


def _rest(faults: list[str]) -> list[str]:
    return [f"and {len(faults) - _REASONS_PER_KIND} more of this kind"] if len(faults) > _REASONS_PER_KIND else []


__all__ = ["PeftAdapter", "read_adapter"]
