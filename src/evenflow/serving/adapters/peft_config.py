"""``adapter_config.json`` of a PEFT LoRA adapter, read strictly: which modules, which rank, which scale.

Fields are those of peft 0.21's LoraConfig. What changes the arithmetic in a way that is not served is a
reason to refuse; what only steered training is ignored. A field that this peft does not know is warned of and ignored,
as peft does: the next one adds a field to every adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

V = TypeVar("V")

_IGNORED = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)
"""They steer training or belong to another field that is checked."""
_READ = frozenset(
    {
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "target_modules",
        "target_parameters",
        "peft_version",
        "exclude_modules",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "fan_in_fan_out",
        "init_lora_weights",
        "bias",
        "use_dora",
        "lora_bias",
        "modules_to_save",
        "trainable_token_indices",
        "ensure_weight_tying",
    }
)
_REMEDIES = {
    "alora_invocation_tokens": "activated LoRA is not supported",
    "layer_replication": "the adapter needs a base model with replicated layers",
    "use_qalora": "train without QA-LoRA",
    "use_bdlora": "train without block-diagonal LoRA",
    "velora_config": "train with plain LoRA",
    "monteclora_config": "train with plain LoRA",
    "arrow_config": "serve the routed adapters one by one",
    "kasa_config": "train with plain LoRA",
    "megatron_config": "convert the adapter to plain LoRA",
}
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""They choose where A and B begin and leave the base model alone."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""They take what A and B begin with out of the base weights, which then are no longer those that are served."""
_PATTERN_CHARACTERS = 2000
_SHOWN_CHARACTERS = 120
_HIGHEST_LORA_RANK = 1 << 20
_MOST_NAMES = 1000


@dataclass(frozen=True, slots=True)
class LoraRules:
    """What the config says about any module path of the base model."""

    lora_rank: int
    alpha: float
    use_rslora: bool
    targets: tuple[str, ...] | str
    """Names, or one regular expression, or "all-linear"."""
    exclude: tuple[str, ...] | str
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    layers: frozenset[int] | None
    layers_pattern: tuple[str, ...]
    base_model: str | None
    use_dora: bool = False
    has_lora_bias: bool = False
    modules_to_save: tuple[str, ...] = ()
    token_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By name of an embedding or head: tokens that have rows of their own, in the order of the rows."""
    target_parameters: tuple[str, ...] = ()
    """Parameters that are no linear's weight, by how their paths end."""
    turns_parameters: bool | None = None
    """True if the peft that wrote it took input for output of 3-D parameters, False if not, None if that is not known."""
    is_tying: bool = False
    """True: what the embedding gets, the head gets too, where the base model ties them."""

    def is_target(self, path: str) -> bool:
        """True if PEFT would put LoRA on the module at ``path`` (of the base model, like model.layers.0.mlp.up_proj)."""
        if _matches(self.exclude, path):
            return False
        if isinstance(self.targets, str):
            if self.targets.lower() == "all-linear":
                return path.endswith("_proj")
            return re.fullmatch(self.targets, path) is not None
        if path in self.targets:
            return True
        if not _matches(self.targets, path):
            return False
        return self.layers is None or self._layer_of(path) in self.layers

    def is_parameter(self, path: str) -> bool:
        """True if target_parameters names the parameter at ``path``."""
        return any(path == entry or path.endswith(f".{entry}") for entry in self.target_parameters)

    def is_saved(self, path: str) -> bool:
        """True if modules_to_save names the module at ``path``; as in PEFT, by how the path ends."""
        return any(path.endswith(entry) for entry in self.modules_to_save)

    def token_ids_of(self, path: str) -> tuple[int, ...]:
        """Tokens whose rows of the table at ``path`` are the adapter's own."""
        return next((ids for name, ids in self.token_ids.items() if path == name or path.endswith(f".{name}")), ())

    def lora_rank_of(self, path: str) -> int:
        """LoRA rank of the module at ``path``."""
        return _by_pattern(self.rank_pattern, path, self.lora_rank)

    def scale_of(self, path: str) -> float:
        """alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023), of the module at ``path``."""
        lora_rank, alpha = self.lora_rank_of(path), _by_pattern(self.alpha_pattern, path, self.alpha)
        return alpha / math.sqrt(lora_rank) if self.use_rslora else alpha / lora_rank

    def _layer_of(self, path: str) -> int | None:
        if not self.layers_pattern:
            match = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", path)
            return int(match["index"]) if match else None
        for pattern in self.layers_pattern:
            match = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", path)
            if match:
                return int(match["index"])
        return None


def read_rules(config: Mapping[str, Any], reasons: list[str], warnings: list[str] | None = None) -> LoraRules | None:
    """The rules, or None; every fault found is appended to ``reasons``, what was ignored to ``warnings``."""
    before = len(reasons)
    _refuse_unsupported(config, reasons, [] if warnings is None else warnings)
    lora_rank = _lora_rank(config.get("r", 8), "r", reasons)
    alpha = _number(config.get("lora_alpha", 8), "lora_alpha", reasons)
    targets = _names_or_pattern(config.get("target_modules"), "target_modules", reasons)
    exclude = _names_or_pattern(config.get("exclude_modules"), "exclude_modules", reasons)
    rank_pattern = {
        key: _lora_rank(value, f"rank_pattern[{_shown(key)}]", reasons)
        for key, value in _mapping(config, "rank_pattern", reasons).items()
    }
    alpha_pattern = {
        key: _number(value, f"alpha_pattern[{_shown(key)}]", reasons)
        for key, value in _mapping(config, "alpha_pattern", reasons).items()
    }
    for key in (*rank_pattern, *alpha_pattern):
        _check_pattern(key, "rank_pattern or alpha_pattern", reasons)
    layers = _layers(config.get("layers_to_transform"), reasons)
    layers_pattern = _patterns(config.get("layers_pattern"), "layers_pattern", reasons)
    saved = _names(config.get("modules_to_save"), "modules_to_save", reasons)
    token_ids = _token_ids(config.get("trainable_token_indices"), reasons)
    parameters = _names(config.get("target_parameters"), "target_parameters", reasons)
    if not targets and not parameters:
        reasons.append("target_modules is empty; allowed: module names, a regular expression or 'all-linear'")
    if isinstance(targets, str) and (layers is not None or layers_pattern):
        reasons.append("layers_to_transform and layers_pattern cannot be used when target_modules is a string")
    if layers_pattern and layers is None:
        reasons.append("layers_pattern is given without layers_to_transform")
    if len(reasons) > before:
        return None
    base_model = config.get("base_model_name_or_path")
    return LoraRules(
        lora_rank=lora_rank,
        alpha=alpha,
        use_rslora=bool(config.get("use_rslora", False)),
        targets=targets,
        exclude=exclude,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        layers=layers,
        layers_pattern=layers_pattern,
        base_model=base_model if isinstance(base_model, str) else None,
        use_dora=bool(config.get("use_dora", False)),
        has_lora_bias=bool(config.get("lora_bias", False)),
        modules_to_save=saved,
        token_ids=token_ids,
        target_parameters=parameters,
        turns_parameters=_turns_parameters(config.get("peft_version")),
        is_tying=bool(config.get("ensure_weight_tying", False)),
    )


def _refuse_unsupported(config: Mapping[str, Any], reasons: list[str], warnings: list[str]) -> None:
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        reasons.append(f"peft_type is {_shown(peft_type)}; supported: 'LORA'")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        reasons.append(f"task_type is {_shown(config['task_type'])}; supported: 'CAUSAL_LM'")
    if config.get("bias", "none") != "none":
        reasons.append(f"bias is {_shown(config['bias'])}; supported: 'none' (train without biases)")
    for flag in ("use_rslora", "fan_in_fan_out", "use_dora", "lora_bias", "ensure_weight_tying"):
        if not isinstance(config.get(flag, False), bool | None):
            reasons.append(f"{flag} is {_shown(config[flag])}; allowed: true or false")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        reasons.append(
            f"init_lora_weights is {_shown(init)}, which changes the base weights; "
            "convert it with save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    elif not any(init is plain or (isinstance(init, str) and init == plain) for plain in _PLAIN_INIT):
        reasons.append(f"init_lora_weights is {_shown(init)}; it is not known to be plain LoRA")
    for name, value in config.items():
        if name in _IGNORED or name in _READ or value in (None, False, "", [], {}):
            continue
        if name in _REMEDIES:
            reasons.append(f"{name} is {_shown(value)}; it is not supported ({_REMEDIES[name]})")
        else:
            warnings.append(f"{name[:_SHOWN_CHARACTERS]} is {_shown(value)}; no such LoRA field is known, and it is ignored")


def _shown(value: Any) -> str:
    """The beginning of a value that may be megabytes."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."


def _lora_rank(value: Any, name: str, reasons: list[str]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _HIGHEST_LORA_RANK:
        reasons.append(f"{name} is {_shown(value)}; allowed: an integer from 1 to {_HIGHEST_LORA_RANK}")
        return 1
    return value


def _number(value: Any, name: str, reasons: list[str]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e38 < value < 1e38:
        reasons.append(f"{name} is {_shown(value)}; allowed: a finite number")
        return 1.0
    return float(value)


def _mapping(config: Mapping[str, Any], name: str, reasons: list[str]) -> Mapping[str, Any]:
    value = config.get(name) or {}
    if isinstance(value, Mapping):
        return value
    reasons.append(f"{name} is {_shown(value)}; allowed: an object")
    return {}


def _names_or_pattern(value: Any, name: str, reasons: list[str]) -> tuple[str, ...] | str:
    if value is None:
        return ()
    if isinstance(value, str):
        if value.lower() != "all-linear":
            _check_pattern(value, name, reasons)
        return value
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    reasons.append(f"{name} is {_shown(value)}; allowed: a list of names, a regular expression or 'all-linear'")
    return ()


def _names(value: Any, name: str, reasons: list[str]) -> tuple[str, ...]:
    if not value:
        return ()
    if isinstance(value, list) and len(value) <= _MOST_NAMES and all(isinstance(entry, str) and entry for entry in value):
        return tuple(value)
    reasons.append(f"{name} is {_shown(value)}; allowed: a list of at most {_MOST_NAMES} names")
    return ()


def _token_ids(value: Any, reasons: list[str]) -> dict[str, tuple[int, ...]]:
    by_name = {"embed_tokens": value} if isinstance(value, list) and value else value or {}
    if isinstance(by_name, Mapping) and all(
        isinstance(ids, list) and ids and all(type(i) is int and 0 <= i < 1 << 31 for i in ids) for ids in by_name.values()
    ):
        return {name: tuple(ids) for name, ids in by_name.items()}
    reasons.append(f"trainable_token_indices is {_shown(value)}; allowed: a list of token ids, or an object of such lists")
    return {}


def _turns_parameters(version: Any) -> bool | None:
    """From peft_version; peft 0.19.1 corrected it."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", version) if isinstance(version, str) else None
    if match is None:
        return None
    found = (int(match[1]), int(match[2]), int(match[3] or 0))
    return None if found == (0, 19, 0) else found < (0, 19, 0)


def _patterns(value: Any, name: str, reasons: list[str]) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) and value else tuple(value) if isinstance(value, list) else ()
    if value and not patterns:
        reasons.append(f"{name} is {_shown(value)}; allowed: a name or a list of names")
    for pattern in patterns:
        _check_pattern(pattern, name, reasons)
    return patterns


def _check_pattern(pattern: Any, name: str, reasons: list[str]) -> None:
    if not isinstance(pattern, str) or len(pattern) > _PATTERN_CHARACTERS:
        reasons.append(f"{name} holds {_shown(pattern)}; allowed: a text of at most {_PATTERN_CHARACTERS} characters")
        return
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        reasons.append(f"{name} holds {_shown(pattern)}, which is no regular expression ({error})")


def _layers(value: Any, reasons: list[str]) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    values = [value] if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        return frozenset(values)
    reasons.append(f"layers_to_transform is {_shown(value)}; allowed: an integer or a list of integers")
    return None


def _matches(names: tuple[str, ...] | str, path: str) -> bool:
    """A list matches by the whole path or its last parts, a string as a regular expression."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return path in names or any(path.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, V], path: str, default: V) -> V:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


__all__ = ["LoraRules", "read_rules"]
