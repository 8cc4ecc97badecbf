"""Which linear layers of a transformers model are split by columns and which by rows, and what else must be cut.

Finds the modules of a model that the patterns of its family (``families``) name; knows nothing of ranks or compression.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from evenflow.base.errors import ConfigError, ModelError
from evenflow.mcbench.split.families import Segments, family_of

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)(?:\.|$)")


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
    partial: tuple[str, ...]
    """Modules that each rank applies to its own heads alone: gradients of their parameters are summed over ranks."""
    packed: tuple[tuple[str, Segments], ...]
    """(column linear, output widths of the products that it holds side by side)."""
    layers: tuple[str, ...]
    """Transformer layers."""

    def segments_of(self, name: str) -> Segments:
        """Return the segments of a packed column linear, or of the parameter of one; empty for all others."""
        packed = dict(self.packed)
        return packed.get(name) or packed.get(name.rpartition(".")[0], ())

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
    family = family_of(model)
    linears = [name for name, module in model.named_modules() if _is_linear(module) and layer_of(name) is not None]
    columns = [name for name in linears if re.search(f"({family.columns})$", name)]
    rows = [name for name in linears if re.search(f"({family.rows})$", name)]
    if not columns or not rows:
        raise ModelError(f"{type(model).__name__}: its plan matches {len(columns)} column and {len(rows)} row linears")
    by_owner: dict[str, list[str]] = {}
    for name in columns:
        by_owner.setdefault(name.rpartition(".")[0], []).append(name)
    modules = dict(model.named_modules())
    segments = family.packed(model.config) if family.packed is not None else {}
    packed = tuple((name, segments[last]) for name in columns if (last := name.rpartition(".")[2]) in segments)
    attention = {owner for owner, names in by_owner.items() if len(names) > 1 or names[0] in dict(packed)}
    head_counts = [
        (owner, attribute)
        for owner in by_owner
        for attribute in family.head_counts
        if owner in attention and hasattr(modules[owner], attribute.partition(".")[0])
    ]
    layers = [name for name in modules if (match := _LAYER.search(name)) and match.end() == len(name)]
    return Roles(
        tuple(columns),
        tuple(rows),
        tuple(owner for owner, names in by_owner.items() if len(names) > 1),
        tuple(names[0] for names in by_owner.values() if len(names) == 1),
        tuple(name for name in modules if family.head_tables and re.search(family.head_tables + "$", name)),
        tuple(head_counts),
        tuple(name for name in modules if family.partial and re.search(f"({family.partial})$", name)),
        packed,
        tuple(layers),
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


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
            if any(part % world_size for part in (width, *(roles.segments_of(name) if side == "out_features" else ()))):
                raise ConfigError(f"{name}: {side} = {width} cannot be split over {world_size} ranks")
