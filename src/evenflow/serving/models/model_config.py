"""Read ``config.json`` and ``generation_config.json`` of a Hugging Face folder, strictly. No torch.

Dense decoders of several families (see ``registry``) differ by a few flags; the flags are in ModelConfig and the
decoder reads nothing else. What cannot be honoured is refused here, by name and value.
Spellings of transformers 4 (torch_dtype, rope_theta, rope_scaling) and 5 (dtype, rope_parameters).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evenflow.base.errors import ModelError
from evenflow.serving.core.shape import ExpertsShape, ModelShape
from evenflow.serving.models.family import Activation, LayerKind, ModelFamily, Traits
from evenflow.serving.models.fields import Fields
from evenflow.serving.models.generation_config import read_generation_config, sampling_defaults
from evenflow.serving.models.mixture import Mixture
from evenflow.serving.models.registry import FAMILIES, family_of
from evenflow.serving.models.rope import RopeSpec, is_rope_per_type, read_rope
from evenflow.serving.models.stored.quantization_config import read_quantization_config

_MOST_LAYERS = 4096
_FULL, _SLIDING = "full_attention", "sliding_attention"
_DTYPES = ("float32", "float16", "bfloat16")

FOREIGN: Mapping[str, tuple[Any, ...]] = {
    "compression_config": (None,),
    "attn_logit_softcapping": (None, 0, 0.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "query_pre_attn_scalar": (None,),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "rope_local_base_freq": (None,),
    "num_local_experts": (None, 0),
    "num_experts": (None, 0),
    "no_rope_layers": (None, []),
    "no_rope_layer_interval": (None,),
    "use_qk_norm": (None, False),
    "use_bidirectional_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
}
"""Fields that some family has, with the values that change nothing: any other value is refused unless the family honours it."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder, by its sizes and flags."""

    architecture: str
    shape: ModelShape
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeSpec
    """Of the layers that see everything, if there are such; else of the first."""
    layers: tuple[LayerKind, ...]
    """One for each layer."""
    traits: Traits
    activation: Activation
    has_qkv_bias: bool
    has_o_bias: bool
    has_mlp_bias: bool
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    dtype: str | None
    """dtype of the stored weights, where the folder says."""
    mixture: Mixture | None = None
    """Its mixtures of experts, if it has such."""
    sampling_defaults: tuple[tuple[str, float], ...] = ()
    """(field of SamplingParams, value) pairs that generation_config.json recommends."""

    @property
    def family(self) -> ModelFamily:
        """What it shares with all models of its kind."""
        return FAMILIES[self.architecture]

    @property
    def attention_scale(self) -> float:
        """Multiplies the scores of attention."""
        given = self.traits.attention_scale
        return self.shape.head_dim**-0.5 if given is None else given

    def windows(self, max_len: int) -> tuple[int | None, ...]:
        """How many tokens a token of each layer sees, itself included; None: all of a sequence of ``max_len`` tokens."""
        return tuple(None if kind.window is None or kind.window >= max_len else kind.window for kind in self.layers)

    def kept_window(self, max_len: int) -> int | None:
        """How many tokens back, at most, any layer sees in sequences of ``max_len`` tokens; None: some layer sees them all."""
        windows = [window for window in self.windows(max_len) if window is not None]
        return max(windows) if len(windows) == len(self.layers) else None

    def context_length(self, requested: int | None = None) -> int:
        """Tokens a sequence may have, prompt and output. ``requested`` None: as many as the model supports.

        A dynamic rope is honoured by keeping sequences inside its original context, beyond which its frequencies
        would depend on the sequence's length and K in the arena would go stale. A longrope keeps inside it too unless more
        is requested: then all sequences get the long factors, whatever their length. Raises ModelError if ``requested``
        exceeds that.
        """
        limit, reason = self.max_position_embeddings, f"max_position_embeddings is {self.max_position_embeddings}"
        if self.rope.kind in ("linear", "yarn") and requested is not None:
            stretched = int(self.rope.original_max_position * self.rope.factor)
            if stretched > limit:
                limit, reason = stretched, f"a {self.rope.kind} rope of factor {self.rope.factor} reaches {stretched} tokens"
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
    fields = Fields(config)
    for name, neutral in FOREIGN.items():
        if name in config and name not in family.honours and config[name] not in neutral:
            fields.refuse(f"{name} is {config[name]!r}; a {family.model_type} model with it is not supported")
    activation = fields.choice(family.activation_field, family.default_activation, family.activations)
    fields.noting(lambda: _check_quantization(config), None)
    mixture = family.mixture(fields)
    shape = _shape(fields, family, mixture)
    max_position = fields.integer("max_position_embeddings")
    has_qkv_bias, has_o_bias = _attention_biases(fields, family)
    eps = config.get(family.norm_eps_field, family.default_norm_eps)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        fields.refuse(f"{family.norm_eps_field} is {eps!r}; allowed: a number between 0 and 1")
    layer_types = _layer_types(fields, shape.num_layers, family)
    ropes = _ropes(fields, family, max_position, shape, layer_types)
    windows = _windows(fields, layer_types, family)
    found = ModelConfig(
        architecture=family.architecture,
        shape=shape,
        max_position_embeddings=max_position,
        rms_norm_eps=eps,
        rope=next((one for one, window in zip(ropes, windows) if window is None), ropes[0]),
        layers=family.layers(fields, tuple(LayerKind(*of_layer) for of_layer in zip(ropes, windows))),
        traits=family.traits(fields),
        activation=activation,
        has_qkv_bias=has_qkv_bias,
        has_o_bias=has_o_bias,
        has_mlp_bias=family.reads_mlp_bias and fields.flag(family.mlp_bias_field),
        tie_word_embeddings=fields.flag("tie_word_embeddings", family.default_is_tied),
        eos_token_ids=_token_ids(fields, generation, shape.vocab_size),
        bos_token_id=fields.optional_id("bos_token_id"),
        dtype=_dtype(fields),
        mixture=mixture,
        sampling_defaults=fields.noting(lambda: tuple(sampling_defaults(generation).items()), ()),
    )
    fields.check()
    return found


def _check_quantization(config: Mapping[str, Any]) -> None:
    read_quantization_config(config)  # says what is wrong with it; whoever reads the weights reads it again


def _shape(fields: Fields, family: ModelFamily, mixture: Mixture | None) -> ModelShape:
    num_heads, hidden_size = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    num_layers = fields.integer("num_hidden_layers", most=_MOST_LAYERS)
    inner, vocab_size = fields.integer("intermediate_size"), fields.integer("vocab_size")
    num_kv_heads = fields.integer("num_key_value_heads", family.default_num_kv_heads or num_heads)
    is_given = fields.raw.get("head_dim") is not None or family.default_head_dim is not None
    head_dim = fields.integer("head_dim", family.default_head_dim or max(1, hidden_size // num_heads))
    if not fields.reasons:
        if not is_given and hidden_size % num_heads:
            fields.refuse(f"hidden_size is {hidden_size}; allowed: a multiple of num_attention_heads ({num_heads})")
        elif head_dim % 2:
            fields.refuse(f"head_dim is {head_dim}; allowed: an even number")
        if num_heads % num_kv_heads:
            fields.refuse(f"num_key_value_heads is {num_kv_heads}; allowed: a divisor of num_attention_heads ({num_heads})")
    if mixture is None:
        return ModelShape(num_layers, hidden_size, inner, num_heads, num_kv_heads, head_dim, vocab_size)
    # Adapters know one width of MLPs: the dense layers' where there are such, else the shared expert's.
    if all(mixture.is_sparse):
        inner = mixture.shared_width or mixture.width
    block = "mlp.shared_expert" if mixture.shared_width == inner else ""
    return ModelShape(
        num_layers,
        hidden_size,
        inner,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size,
        mlp_blocks=tuple(block if is_sparse else "mlp" for is_sparse in mixture.is_sparse),
        experts=ExpertsShape(mixture.num_experts, mixture.width, mixture.shared_width),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path.name} holds no JSON object")
    return value


def _attention_biases(fields: Fields, family: ModelFamily) -> tuple[bool, bool]:
    """Whether q, k and v have a bias, and whether o has one."""
    if not family.reads_attention_bias:
        return family.has_qkv_bias, False
    of_qkv, of_o = fields.flag(family.attention_bias_field, family.default_attention_bias), family.o_bias_field
    if of_o == family.attention_bias_field:
        return of_qkv, of_qkv
    return of_qkv, of_o is not None and fields.flag(of_o)


def _layer_types(fields: Fields, num_layers: int, family: ModelFamily) -> list[str]:
    """Of each layer whether it sees everything or a window, by the names in ``layer_types``."""
    given = fields.per_layer("layer_types", num_layers, (_FULL, _SLIDING))
    window = fields.raw.get("sliding_window", family.default_window)
    slides = [False] * num_layers
    if family.sliding_window == "if used":
        if not fields.flag("use_sliding_window"):
            return [_FULL] * num_layers
        first = fields.integer("max_window_layers", 28) if fields.raw.get("max_window_layers") != 0 else 0
        slides = [layer >= first and window is not None for layer in range(num_layers)]
    elif family.sliding_window == "always":
        return [_FULL if window is None else _SLIDING] * num_layers
    elif family.full_every is not None:
        named = family.full_every_field
        every = family.full_every if named is None else fields.integer(named, family.full_every)
        slides = [(layer + 1) % every != 0 for layer in range(num_layers)]
    return [_SLIDING if one else _FULL for one in slides] if given is None else given


def _windows(fields: Fields, layer_types: list[str], family: ModelFamily) -> list[int | None]:
    """The window of each layer in tokens; None: it sees everything."""
    if _SLIDING not in layer_types:
        return [None] * len(layer_types)
    if fields.raw.get("sliding_window", family.default_window) is None:
        fields.refuse("sliding_window is null; allowed: an integer of 1 or more, because some layers have a window")
        return [None] * len(layer_types)
    window = fields.integer("sliding_window", family.default_window)
    return [window if name == _SLIDING else None for name in layer_types]


def _ropes(fields: Fields, family: ModelFamily, max_position: int, shape: ModelShape, layer_types: list[str]) -> list[RopeSpec]:
    """The rope of each layer."""
    theta, of_windows = family.default_theta, family.default_window_theta

    def read(layer_type: str | None) -> RopeSpec:
        raw: Mapping[str, Any] = fields.raw
        slides = layer_type == _SLIDING
        if slides and not is_rope_per_type(raw):  # The rope that is given is that of the layers that see everything.
            raw = {**raw, "rope_parameters": None, "rope_scaling": None}
        if slides and family.window_theta_field is not None:
            raw = {**raw, "rope_theta": raw.get(family.window_theta_field)}
        return read_rope(
            raw,
            max_position,
            shape.head_dim,
            default_theta=of_windows if slides and of_windows is not None else theta,
            default_partial=family.default_partial,
            layer_type=layer_type if is_rope_per_type(raw) else None,
        )

    if not family.has_rope_per_layer_type:
        return [fields.noting(lambda: read(None), RopeSpec())] * shape.num_layers
    of_type = {name: fields.noting(partial(read, name), RopeSpec()) for name in dict.fromkeys(layer_types)}
    return [of_type[name] for name in layer_types]


def _token_ids(fields: Fields, generation: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    value = (generation if generation.get("eos_token_id") is not None else fields.raw).get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in ids):
        fields.refuse(f"eos_token_id is {value!r}; allowed: one token id or a list of them")
        return ()
    # Ids beyond the vocabulary occur in published folders; the model can never produce them.
    return tuple(dict.fromkeys(token for token in ids if token < vocab_size))


def _dtype(fields: Fields) -> str | None:
    value = fields.raw.get("dtype", fields.raw.get("torch_dtype"))
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        fields.refuse(f"dtype is {value!r}; supported: {', '.join(_DTYPES)}")
    return name


__all__ = ["FOREIGN", "ModelConfig", "load_config", "parse_config"]
