"""A mixture of experts: its numbers in a ``config.json``, and what checkpoints call its parts. No torch.

A router sends every token to a few of many MLPs, the experts, and adds up what they say (Shazeer et al. 2017; Mixtral,
Jiang et al. 2024). Some families add a shared expert that all tokens go to.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.serving.models.fields import Fields

_MOST_EXPERTS = 1024


@dataclass(frozen=True, slots=True)
class MixtureNames:
    """What a family's checkpoints call the parts of a mixture, inside a layer."""

    block: str = "mlp"
    router: str = "gate"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


@dataclass(frozen=True, slots=True)
class Mixture:
    """The mixtures of a model: all of its sparse layers have the same sizes."""

    num_experts: int
    num_chosen: int
    """Experts that a token is sent to."""
    width: int
    """Intermediate width of an expert."""
    is_renormalised: bool
    """True: the probabilities of the chosen experts are divided by their sum."""
    is_sparse: tuple[bool, ...]
    """By layer: True if its MLP is a mixture."""
    shared_width: int = 0
    """Intermediate width of the shared expert; 0: there is none."""
    names: MixtureNames = MixtureNames()


def read_mixture(
    fields: Fields,
    *,
    num_experts: int | None,
    num_chosen: int,
    width_field: str = "moe_intermediate_size",
    width: int | None = None,
    is_renormalised: bool | None = None,
    default_shared_width: int = 0,
    has_dense_layers: bool = False,
    names: MixtureNames = MixtureNames(),
) -> Mixture:
    """A family's mixture. Numbers that are given stand for missing fields; None: the field must be there.

    ``is_renormalised`` None: ``norm_topk_prob`` says it. ``has_dense_layers``: ``decoder_sparse_step`` and
    ``mlp_only_layers`` are read.
    """
    raw = fields.raw
    both = [raw[name] for name in ("num_experts", "num_local_experts") if raw.get(name) is not None]
    if len(both) == 2 and both[0] != both[1]:
        fields.refuse(f"num_experts is {both[0]!r} and num_local_experts is {both[1]!r}; allowed: equal, or one of them")
    field = "num_local_experts" if raw.get("num_experts") is None else "num_experts"
    experts = fields.integer(field, num_experts, most=_MOST_EXPERTS)
    chosen = fields.integer("num_experts_per_tok", num_chosen)
    if chosen > experts:
        fields.refuse(f"num_experts_per_tok is {chosen}; allowed: 1 to {field} ({experts})")
    num_layers = fields.integer("num_hidden_layers", most=4096)
    return Mixture(
        num_experts=experts,
        num_chosen=chosen,
        width=fields.integer(width_field, width),
        is_renormalised=fields.flag("norm_topk_prob") if is_renormalised is None else is_renormalised,
        is_sparse=_sparse_layers(fields, num_layers) if has_dense_layers else (True,) * num_layers,
        shared_width=fields.integer("shared_expert_intermediate_size", default_shared_width) if default_shared_width else 0,
        names=names,
    )


def _sparse_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    step = fields.integer("decoder_sparse_step", 1)
    dense = fields.raw.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in dense):
        fields.refuse(f"mlp_only_layers is {repr(dense)[:80]}; allowed: a list of layer numbers")
        dense = []
    found = tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers))
    if not any(found):
        fields.refuse("decoder_sparse_step and mlp_only_layers leave no layer with experts; allowed: at least one")
    return found


__all__ = ["Mixture", "MixtureNames", "read_mixture"]
