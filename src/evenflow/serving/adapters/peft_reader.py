"""Read a PEFT LoRA folder, strictly: every tensor is used or the adapter is refused, with all reasons at once.

numpy only. The result knows layers, modules, ranks and scales; not pages (``image``) and not names
(``catalog``). What is read is bounded before it is parsed: bytes, tensors, and what a rank can need. Time and memory are
bounded by the process that this runs in (``bounded_reading``). Legend: R rank, I input width, O output width of a module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evenflow.base.errors import AdapterNotFound, AdapterRejected
from evenflow.base.logs import printable
from evenflow.serving.adapters.adapter_files import FileState, OpenedFile, read_file
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.mixture_parts import max_mixture_values
from evenflow.serving.adapters.peft_config import LoraRules, read_rules
from evenflow.serving.adapters.peft_format import CONFIG_FILE
from evenflow.serving.adapters.peft_parts import MOST_NEW_TOKENS, REASONS_PER_KIND, Parts, Target, match_parts, summarised
from evenflow.serving.adapters.side_values import SideReading, SideValues
from evenflow.serving.adapters.tensor_source import TensorSource, parse_tensors, weights_file
from evenflow.serving.core.adapter import AdapterSignature, SideRows
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.core.shape import MODULES, ModelShape

_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 8 << 20
_REASON_CHARACTERS = 300
_MOST_REASONS = 32
_NARROWEST_PAGE = 1 << 12


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What reading an adapter needs to know of the model that it is served with."""

    shape: ModelShape
    weights: BaseWeights | None = None
    """None: they cannot be had, so that DoRA is refused and own tables are kept whole."""
    max_columns: int = _NARROWEST_PAGE
    """Elements of the longest row that fits into a page a few times."""


@dataclass(frozen=True, slots=True, eq=False)
class PeftAdapter:
    """One adapter as read from its folder, checked against the base model's shape."""

    digest: AdapterDigest
    """sha256 over ranks, scales and stored weights of every module: what decides its outputs, and nothing else."""
    signature: AdapterSignature
    target_modules: tuple[str, ...]
    """What it adapts: MODULES in any layer, embed_tokens, lm_head, norms."""
    base_model: str | None
    """Name or path of the base model it was trained on, if the folder says."""
    warnings: tuple[str, ...]
    """What its config holds that is not known and was ignored."""
    states: tuple[FileState, FileState]
    """Of config and weights as they were read."""
    depends_on_base: bool
    """True if it was worked out with the base model's weights: its digest holds for these alone."""
    _tensors: TensorSource
    _parts: Parts
    _gain: Callable[[Target], np.ndarray | None]
    _side: SideValues

    def a(self, layer: int, module: str) -> np.ndarray:
        """fp32 [R, I]."""
        return self._tensors.as_float32(self._parts.linears[layer, module].a)

    def b_scaled(self, layer: int, module: str) -> np.ndarray:
        """B transposed, times the LoRA scale and DoRA's gain, in fp32: [R, O]; infinite where that overflows."""
        part = self._parts.linears[layer, module]
        b_OR = self._tensors.as_float32(part.b)[part.outputs]
        gain_O = self._gain((layer, module))
        with np.errstate(over="ignore"):
            b_RO = b_OR.T * np.float32(part.scale)
            return b_RO if gain_O is None else b_RO * gain_O

    @property
    def side(self) -> Sequence[tuple[SideRows, Callable[[], np.ndarray]]]:
        """The signature's side rows, and what makes what they hold: fp32 [count, width]."""
        return self._side

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every adapted (layer, module)."""
        return tuple(sorted(self._parts.linears))


def read_adapter(
    path: str | Path, base: ModelShape | BaseModel, max_lora_rank: int | None = None, allowed: Sequence[Path] = ()
) -> PeftAdapter:
    """Read the adapter in folder ``path`` for a ``base`` model. ``max_lora_rank``: the highest that is accepted.

    ``allowed``: folders beside its own where its files may lie. Raises AdapterNotFound if there is no adapter,
    AdapterRejected with every reason found if it cannot be served faithfully, AdapterUnavailable where the host is at fault.
    """
    folder = Path(path)
    model = base if isinstance(base, BaseModel) else BaseModel(base)
    shape = model.shape
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
    name = weights_file(folder)
    weights = _read_weights(folder, name, allowed, max_weights_bytes(shape, max_lora_rank), reasons)
    tensors = _parse_weights(weights, name, reasons) if weights is not None else None
    if rules is None or tensors is None or weights is None:
        raise AdapterRejected(str(folder), _told(reasons))
    _check_lora_ranks(rules, shape, max_lora_rank, reasons)
    parts = match_parts(tensors, rules, shape, model.weights is not None and model.weights.is_tied, reasons, name)
    if not reasons:
        reasons += summarised("holds NaN or infinity", [name for name in tensors.shapes if not _is_finite(tensors, name)])
    if reasons:
        raise AdapterRejected(str(folder), _told(reasons))
    reading = SideReading(tensors, parts, shape, model.weights, model.max_columns, reasons)
    try:
        side, vocab_size = reading.values(), reading.vocab_size
    except (OSError, ValueError) as error:
        raise AdapterRejected(str(folder), [f"the base weights cannot be read ({error})"]) from None
    if reasons:
        raise AdapterRejected(str(folder), _told(reasons))
    lora_ranks = tuple(
        tuple(tensors.shapes[parts.linears[layer, m].a][0] if (layer, m) in parts.linears else 0 for m in MODULES)
        for layer in range(shape.num_layers)
    )
    signature = AdapterSignature(lora_ranks, tuple(rows for rows, _ in side), vocab_size)
    return PeftAdapter(
        digest=_digest(tensors, parts, side, lambda target: reading.gain(parts.linears[target])),
        signature=signature,
        target_modules=_target_modules(parts),
        base_model=rules.base_model,
        warnings=tuple(_clean(warning) for warning in warnings[:REASONS_PER_KIND]),
        states=(file.state, weights.state),
        depends_on_base=model.weights is not None and (model.weights.was_asked or bool(parts.tables or parts.tokens)),
        _tensors=tensors,
        _parts=parts,
        _gain=lambda target: reading.gain(parts.linears[target]),
        _side=side,
    )


def max_weights_bytes(shape: ModelShape, max_lora_rank: int | None) -> int:
    """The largest file that can hold an adapter of the highest LoRA rank with tables of its own, in fp32, for this model."""
    lora_rank = min(max_lora_rank or shape.hidden_size, shape.hidden_size)
    widths = sum(sum(shape.module_widths(module)) for module in MODULES)
    vocabulary = shape.vocab_size + MOST_NEW_TOKENS
    of_tables = 2 * vocabulary * shape.hidden_size + 2 * lora_rank * (vocabulary + shape.hidden_size) + 2 * vocabulary
    of_layer = lora_rank * widths + 3 * widths
    if shape.experts is not None:
        of_layer += max_mixture_values(shape.experts, shape.hidden_size, lora_rank)
    return _MAX_HEADER_BYTES + 4 * (shape.num_layers * of_layer + of_tables)


def _target_modules(parts: Parts) -> tuple[str, ...]:
    modules = [m for m in MODULES if any(module == m for _, module in parts.linears)]
    if parts.embedding is not None or "model.embed_tokens" in (*parts.tables, *parts.tokens):
        modules.append("embed_tokens")
    if parts.head is not None or "lm_head" in (*parts.tables, *parts.tokens):
        modules.append("lm_head")
    return (*modules, *parts.mixture.modules, *dict.fromkeys(module for _, module in parts.norms))


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


def _read_weights(folder: Path, name: str, allowed: Sequence[Path], max_bytes: int, reasons: list[str]) -> OpenedFile | None:
    try:
        return read_file(folder, name, allowed=allowed, max_bytes=max_bytes)
    except FileNotFoundError:
        reasons.append(f"{name} is missing")
    except (OSError, ValueError) as error:
        reasons.append(_in_words(error, name))
    return None


def _parse_weights(file: OpenedFile, name: str, reasons: list[str]) -> TensorSource | None:
    try:
        return parse_tensors(file.data, name, max_header_bytes=_MAX_HEADER_BYTES)
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


def _is_finite(tensors: TensorSource, name: str) -> bool:
    return bool(np.isfinite(tensors.as_float32(name)).all())


def _digest(
    tensors: TensorSource, parts: Parts, side: SideValues, gain: Callable[[Target], np.ndarray | None]
) -> AdapterDigest:
    digest = hashlib.sha256()
    told = set()
    for target in sorted(parts.linears):
        part = parts.linears[target]
        piece = "" if part.path.endswith(target[1]) else f"{part.outputs.start} "
        for name in (part.a, part.b):
            shape = list(tensors.shapes[name])
            digest.update(f"{target[0]} {target[1]} {piece}{part.scale.hex()} {tensors.dtypes[name]} {shape}\n".encode())
            digest.update(tensors.raw(name))
            told.add(name)
        gain_O = gain(target)
        if gain_O is not None:
            digest.update(gain_O.tobytes())
    for name in sorted(set(tensors.shapes) - told):
        digest.update(f"{name} {tensors.dtypes[name]} {list(tensors.shapes[name])}\n".encode())
        digest.update(tensors.raw(name))
    scales = [part.scale.hex() for part in (parts.head,) if part] + [parts.embedding[2].hex() for _ in (1,) if parts.embedding]
    listed = [(rows.kind, rows.token_ids) for rows, _ in side if rows.kind in ("embedding", "head")]
    scales += [f"{where} {factors.scale.hex()} {factors.is_turned}" for where, factors in parts.mixture.factors()]
    if scales or listed:
        digest.update(repr((scales, listed)).encode())
    return AdapterDigest(digest.hexdigest())


__all__ = ["BaseModel", "PeftAdapter", "max_weights_bytes", "read_adapter"]
