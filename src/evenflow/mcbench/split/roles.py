"""Which linear layers of a transformers model are split by columns and which by rows, and what else must be cut.

Knows model families by their module names; knows nothing of ranks or compression. Models that bring their own
tensor-parallel plan (Llama, Qwen and most decoders) are read from it; BERT, ViT, OPT and T5's encoder, which bring none,
are described here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from evenflow.base.errors import ConfigError, ModelError

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)(?:\.|$)")

# model_type -> (column linears, row linears, attention attributes that count heads, tensors cut by head)
_FAMILIES: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "bert": (
        r"attention\.self\.(query|key|value)|intermediate\.dense",
        r"(attention\.output|layer\.\d+\.output)\.dense",
        (),
        "",
    ),
    "vit": (r"attention\.(q_proj|k_proj|v_proj)|mlp\.fc1", r"attention\.o_proj|mlp\.fc2", (), ""),
    "opt": (r"self_attn\.(q_proj|k_proj|v_proj)|\d+\.fc1", r"self_attn\.out_proj|\d+\.fc2", ("num_heads",), ""),
    "t5": (
        r"SelfAttention\.(q|k|v)|DenseReluDense\.(wi|wi_0|wi_1)",
        r"SelfAttention\.o|DenseReluDense\.wo",
        ("n_heads", "inner_dim"),
        r"SelfAttention\.relative_attention_bias",
    ),
}


@dataclass(frozen=True, slots=True)
class Roles:
    """Names of the modules of each role, in the order of the model."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    owners: tuple[str, ...]
    """Modules that own several column linears (attention, gated MLP): one operator f on their input."""
    lone_columns: tuple[str, ...]
    """Column linears alone in their owner: f on the linear itself."""
    head_tables: tuple[str, ...]
    """Embeddings whose last dimension counts heads (T5's relative positions)."""
    head_counts: tuple[tuple[str, str], ...]
    """(module, attribute) that count heads and must be divided."""
    layers: tuple[str, ...]
    """Transformer layers."""

    @property
    def num_layers(self) -> int:
        """How many transformer layers the model has."""
        return len(self.layers)


def layer_of(name: str) -> int | None:
    """Return the 0-based number of the layer a module belongs to."""
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def roles_of(model: nn.Module) -> Roles:
    """Return the roles of the modules of a transformers model. Raises ModelError for a family without a plan."""
    column, row, counts, tables = _patterns(model)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and layer_of(name) is not None]
    columns = [name for name in linears if re.search(column, name)]
    rows = [name for name in linears if re.search(row, name)]
    if not columns or not rows:
        raise ModelError(f"{type(model).__name__}: its plan matches {len(columns)} column and {len(rows)} row linears")
    by_owner: dict[str, list[str]] = {}
    for name in columns:
        by_owner.setdefault(name.rpartition(".")[0], []).append(name)
    modules = dict(model.named_modules())
    attention = {owner for owner, names in by_owner.items() if len(names) > 1}
    head_counts = [
        (owner, attribute)
        for owner in by_owner
        for attribute in counts
        if owner in attention and hasattr(modules[owner], attribute)
    ]
    layers = [name for name in modules if (match := _LAYER.search(name)) and match.end() == len(name)]
    return Roles(
        tuple(columns),
        tuple(rows),
        tuple(owner for owner, names in by_owner.items() if len(names) > 1),
        tuple(names[0] for names in by_owner.values() if len(names) == 1),
        tuple(name for name in modules if tables and re.search(tables + "$", name)),
        tuple(head_counts),
        tuple(layers),
    )


def _patterns(model: nn.Module) -> tuple[str, str, tuple[str, ...], str]:
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", None)
    if family in _FAMILIES:
        column, row, counts, tables = _FAMILIES[family]
        return f"({column})$", f"({row})$", counts, tables
    plan: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    by_style = {
        style: "|".join(re.escape(name).replace(r"\*", r"\d+") for name, value in plan.items() if value == style)
        for style in ("colwise", "rowwise")
    }
    others = sorted(set(plan.values()) - {"colwise", "rowwise"})
    if not by_style["colwise"] or not by_style["rowwise"] or others:
        known = ", ".join(sorted(_FAMILIES))
        reason = f"its plan has the styles {', '.join(others)}" if others else "it has no tensor-parallel plan"
        raise ModelError(
            f"{family or type(model).__name__} cannot be split: {reason}; known: {known}, and models with a plain plan"
        )
    return f"({by_style['colwise']})$", f"({by_style['rowwise']})$", (), ""


def check_divisible(model: nn.Module, roles: Roles, world_size: int) -> None:
    """Raise ConfigError unless heads and widths can be split over ``world_size`` ranks."""
    config = model.config
    heads = {
        "attention heads": getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", None),
        "key-value heads": getattr(config, "num_key_value_heads", None),
    }
    for what, count in heads.items():
        if isinstance(count, int) and count % world_size:
            raise ConfigError(f"{count} {what} cannot be split over {world_size} ranks")
    modules = dict(model.named_modules())
    for names, side in ((roles.columns, "out_features"), (roles.rows, "in_features")):
        for name in names:
            width = getattr(modules[name], side)
            if width % world_size:
                raise ConfigError(f"{name}: {side} = {width} cannot be split over {world_size} ranks")
