"""Read ``config.json`` and ``generation_config.json`` of a Hugging Face folder, strictly. No torch.

Dense decoders of several families (see ``registry``) differ by a few flags; the flags are in ModelConfig and the
decoder reads nothing else. What cannot be honoured is refused here, by name and value.
Spellings of transformers 4 (torch_dtype, rope_theta, rope_scaling) and 5 (dtype, rope_parameters).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenflow.base.errors import ModelError
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.models.generation_config import read_generation_config, sampling_defaults
from evenflow.serving.models.registry import ModelFamily, family_of
from evenflow.serving.models.rope import RopeSpec, read_rope
from evenflow.serving.models.stored.quantization_config import read_quantization_config

_DTYPES = ("float32", "float16", "bfloat16")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "compression_config": (None,),
    "attn_logit_softcapping": (None, 0, 0.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "num_local_experts": (None, 0),
    "num_experts": (None, 0),
    "no_rope_layers": (None, []),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
}
"""Fields of related models with the values that change nothing: any other value is refused."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder, by its sizes and flags."""

    architecture: str
    shape: ModelShape
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeSpec
    has_qkv_bias: bool
    has_o_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    """RMS norm on every query and key head before rope (Qwen3)."""
    tie_word_embeddings: bool
    sliding_window: int | None
    """Tokens that some layer may look back; None: all layers see everything."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    dtype: str | None
    """dtype of the stored weights, where the folder says."""
    sampling_defaults: tuple[tuple[str, float], ...] = ()
    """(field of SamplingParams, value) pairs that generation_config.json recommends."""

    def context_length(self, requested: int | None = None) -> int:
        """Tokens a sequence may have, prompt and output. ``requested`` None: as many as the model supports.

        A sliding window is honoured by keeping sequences inside it; a dynamic rope by keeping them
        inside its original context, beyond which its frequencies would depend on the sequence's
        length and K in the arena would go stale. A longrope keeps inside it too unless more is requested:
        then all sequences get the long factors, whatever their length. Raises ModelError if ``requested`` exceeds that.
        """
        limit, reason = self.max_position_embeddings, f"max_position_embeddings is {self.max_position_embeddings}"
        if self.rope.kind in ("linear", "yarn") and requested is not None:
            stretched = int(self.rope.original_max_position * self.rope.factor)
            if stretched > limit:
                limit, reason = stretched, f"a {self.rope.kind} rope of factor {self.rope.factor} reaches {stretched} tokens"
        if self.sliding_window is not None and self.sliding_window < limit:
            limit, reason = self.sliding_window, f"sliding_window is {self.sliding_window}, and longer sequences would need it"
        if requested is None:
            return min(limit, self.rope.original_max_position) if self.rope.kind == "longrope" else limit
        if requested < 1:
            raise ModelError(f"max_model_len is {requested}; allowed: 1 or more")
        if requested > limit:
            if self.rope.kind == "dynamic":
                reason += ", beyond which a dynamic rope depends on the sequence's length"
            raise ModelError(f"max_model_len is {requested}; allowed: at most {limit} ({reason})")
        return requested


def load_config(path: str | Path) -> ModelConfig:
    """Read the model folder at ``path``. Raises ModelError, naming the field and its value."""
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a model folder: {'it is a file' if folder.exists() else 'no such folder'}")
    if not (folder / "config.json").is_file():
        adapter = " (it is a LoRA adapter; give the base model's folder)" if (folder / "adapter_config.json").is_file() else ""
        raise ModelError(f"{folder} is not a model folder: it holds no config.json{adapter}")
    try:
        return parse_config(_read_json(folder / "config.json"), read_generation_config(folder))
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None


def parse_config(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """What ``load_config`` returns, from ``config.json`` and ``generation_config.json`` as parsed."""
    generation = generation or {}
    family = family_of(config)
    for name, neutral in _NEUTRAL.items():
        if name in config and config[name] not in neutral:
            raise ModelError(f"{name} is {config[name]!r}; it is not supported")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ModelError(f"hidden_act is {config['hidden_act']!r}; supported: 'silu'")
    read_quantization_config(config)  # says what is wrong with it; whoever reads the weights reads it again
    num_heads = _integer(config, "num_attention_heads")
    hidden_size = _integer(config, "hidden_size")
    shape = ModelShape(
        num_layers=_integer(config, "num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_integer(config, "num_key_value_heads", family.default_num_kv_heads or num_heads),
        head_dim=_head_dim(config, family, hidden_size, num_heads),
        vocab_size=_integer(config, "vocab_size"),
    )
    if num_heads % shape.num_kv_heads:
        raise ModelError(
            f"num_key_value_heads is {shape.num_kv_heads}; allowed: a divisor of num_attention_heads ({num_heads})"
        )
    if shape.head_dim % 2:
        raise ModelError(f"head_dim is {shape.head_dim}; allowed: an even number")
    max_position = _integer(config, "max_position_embeddings")
    attention_bias = family.reads_attention_bias and _flag(config, "attention_bias", False)
    eps = config.get("rms_norm_eps", 1e-6)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise ModelError(f"rms_norm_eps is {eps!r}; allowed: a number between 0 and 1")
    return ModelConfig(
        architecture=family.architecture,
        shape=shape,
        max_position_embeddings=max_position,
        rms_norm_eps=float(eps),
        rope=read_rope(config, max_position, shape.head_dim),
        has_qkv_bias=attention_bias or family.has_qkv_bias,
        has_o_bias=attention_bias,
        has_mlp_bias=family.reads_mlp_bias and _flag(config, "mlp_bias", False),
        has_qk_norm=family.has_qk_norm,
        tie_word_embeddings=_flag(config, "tie_word_embeddings", False),
        sliding_window=_sliding_window(config, shape.num_layers, family),
        eos_token_ids=_token_ids(generation if generation.get("eos_token_id") is not None else config, shape.vocab_size),
        bos_token_id=_optional_id(config, "bos_token_id"),
        dtype=_dtype(config),
        sampling_defaults=tuple(sampling_defaults(generation).items()),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path.name} holds no JSON object")
    return value


def _integer(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if value is None:
        raise ModelError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise ModelError(f"{name} is {repr(value)[:40]}; allowed: an integer of 1 or more, below 2^31")
    return value


def _optional_id(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ModelError(f"{name} is {value!r}; allowed: an integer or null")


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ModelError(f"{name} is {value!r}; allowed: true or false")
    return value


def _head_dim(config: Mapping[str, Any], family: ModelFamily, hidden_size: int, num_heads: int) -> int:
    if config.get("head_dim") is None and family.default_head_dim is None and hidden_size % num_heads:
        raise ModelError(f"hidden_size is {hidden_size}; allowed: a multiple of num_attention_heads ({num_heads})")
    return _integer(config, "head_dim", family.default_head_dim or hidden_size // num_heads)


def _sliding_window(config: Mapping[str, Any], num_layers: int, family: ModelFamily) -> int | None:
    """The window in tokens if any layer has one, else None. Where it counts but is not given, it is 4096."""
    layer_types = config.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list) or len(layer_types) != num_layers:
            raise ModelError(f"layer_types is {layer_types!r}; allowed: a list of num_hidden_layers ({num_layers}) names")
        for name in layer_types:
            if name not in ("full_attention", "sliding_attention"):
                raise ModelError(f"layer_types holds {name!r}; supported: 'full_attention', 'sliding_attention'")
    if family.sliding_window == "if used":
        if not _flag(config, "use_sliding_window", False):
            return None
        first = _integer(config, "max_window_layers", 28) if config.get("max_window_layers") != 0 else 0
        slides = "sliding_attention" in layer_types if layer_types is not None else first < num_layers
    elif family.sliding_window == "always":
        slides = True
        if config.get("sliding_window", 4096) is None:
            return None
    else:
        slides = layer_types is not None and "sliding_attention" in layer_types
    return _integer(config, "sliding_window", 4096) if slides else None


def _token_ids(source: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    value = source.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise ModelError(f"eos_token_id is {value!r}; allowed: one token id or a list of them")
    # Ids beyond the vocabulary occur in published folders; the model can never produce them.
    return tuple(dict.fromkeys(token for token in ids if token < vocab_size))


def _dtype(config: Mapping[str, Any]) -> str | None:
    value = config.get("dtype", config.get("torch_dtype"))
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ModelError(f"dtype is {value!r}; supported: {', '.join(_DTYPES)}")
    return name


__all__ = ["ModelConfig", "load_config", "parse_config"]
