"""Sequence parallelism with compressed gathers and scatters on an unmodified transformers model.

As in Megatron: between tensor-parallel blocks every rank holds its part of the sequence. In front of column-parallel
products the parts are gathered (backward: scatter-sum), after row-parallel ones the sums are scattered (backward: gather).
Norms, residuals and row biases work on parts, so the gradients of their parameters are summed over ranks. A sequence that
cannot be cut evenly is filled up with zeros, which are dropped when parts are gathered. The split before the first layer and
the gather after the last are dense; their bytes are booked under the site ``sp.ends``.

OPT flattens batch and sequence to [batch * sequence, hidden] in front of its MLP. Such a matrix is gathered and scattered by
its rows as they are, because an MLP treats every row alike, in whatever order they come.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_product
from torch.nn.functional import pad

from evenflow.base.errors import ConfigError
from evenflow.comm import Exchange
from evenflow.mcbench.split.roles import Roles, layer_of
from evenflow.mcbench.split.rules import CompressionRules
from evenflow.mcbench.split.wiring import Compression, GroupWiring


class Sequence:
    """The sequence of the forward call under way; shared by all operators of a model. Owner of its length."""

    def __init__(self, rank: int, world_size: int, ends: Exchange) -> None:
        self.rank, self.world_size, self.ends = rank, world_size, ends
        self.length = 0

    def _fill(self, x_SBH: Tensor) -> Tensor:
        return pad(x_SBH, (0, 0) * (x_SBH.dim() - 1) + (0, -x_SBH.shape[0] % self.world_size))

    def split(self, x_BSH: Tensor) -> Tensor:
        """Return the own part of hidden states that all ranks hold; the gradient is gathered."""
        self.length = x_BSH.shape[1]
        own = _Split.apply(self._fill(x_BSH.transpose(0, 1)), self)
        return own.transpose(0, 1)

    def join(self, x_BSH: Tensor) -> Tensor:
        """Return the hidden states of the whole sequence; the gradient, equal on all ranks, is cut."""
        whole = _Join.apply(x_BSH.transpose(0, 1).contiguous(), self)
        return whole[: self.length].transpose(0, 1)

    def gather(self, x_BSH: Tensor, forward: Exchange, backward: Exchange) -> Tensor:
        """Return the whole sequence through ``forward``; the gradient is scatter-summed through ``backward``."""
        if x_BSH.dim() == 2:
            return forward.all_gather(x_BSH.contiguous(), backward)
        whole = forward.all_gather(x_BSH.transpose(0, 1).contiguous(), backward)
        return whole[: self.length].transpose(0, 1)

    def scatter(self, x_BSH: Tensor, forward: Exchange, backward: Exchange) -> Tensor:
        """Return the own part of the sum over ranks through ``forward``; the gradient is gathered through ``backward``."""
        if x_BSH.dim() == 2:
            return forward.reduce_scatter(x_BSH.contiguous(), backward)
        own = forward.reduce_scatter(self._fill(x_BSH.transpose(0, 1)).contiguous(), backward)
        return own.transpose(0, 1)


class _Split(torch.autograd.Function):
    """Own part forward, gather backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sequence: Sequence) -> Tensor:
        ctx.sequence = sequence
        return x.chunk(sequence.world_size)[sequence.rank].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.sequence.ends.gather(grad.contiguous()), None


class _Join(torch.autograd.Function):
    """Gather forward, own part backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sequence: Sequence) -> Tensor:
        ctx.sequence = sequence
        return sequence.ends.gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.chunk(ctx.sequence.world_size)[ctx.sequence.rank].contiguous(), None


def attach_sequence(
    model: nn.Module,
    roles: Roles,
    rules: CompressionRules,
    wiring: GroupWiring,
    compression: Compression,
    is_chosen: Callable[[str], bool],
) -> None:
    """Cut the model and put gathers and scatters into it. Raises ConfigError for compressors that are trained."""
    for site in ("sp.forward", "sp.backward"):
        compressor, _ = rules.rule(site).make(wiring.world_size)
        if compressor.is_learned:
            raise ConfigError(f"{site}={compressor.spec}: gathers and scatters take no trained compressors")
    named = dict(model.named_modules())
    dense = CompressionRules()
    ends = wiring.exchange("sp.ends", dense, False, compression)
    sequence = Sequence(wiring.rank, wiring.world_size, ends)

    def pair(name: str) -> tuple[Exchange, Exchange]:
        made = [wiring.exchange(site, rules, is_chosen(name), compression) for site in ("sp.forward", "sp.backward")]
        for exchange in made:
            compression.exchanges.append(exchange)
        return made[0], made[1]

    for name in roles.rows:
        _row(named[name], sequence, pair(name), wiring)
    owners = [(owner, [c for c in roles.columns if c.rpartition(".")[0] == owner]) for owner in roles.owners]
    for name, columns in [*owners, *((name, [name]) for name in roles.lone_columns)]:
        for column in columns:
            wiring.cut_column(named[column], roles.segments_of(column))
        wiring.before(named[name], _gathering(sequence, pair(name)))
    wiring.cut_heads(named, roles)
    wiring.before(named[roles.layers[0]], sequence.split)
    named[roles.layers[-1]].register_forward_hook(lambda module, args, output: _join_output(sequence, output))
    whole = {f"{c}.{kind}" for c in roles.columns for kind in ("weight", "bias")}
    whole |= {f"{r}.weight" for r in roles.rows} | {f"{t}.weight" for t in roles.head_tables}
    for name, parameter in model.named_parameters():
        if layer_of(name) is not None and name not in whole and re.match(_any_of(roles.layers), name):
            parameter.register_hook(_summing(wiring, compression))


def _any_of(names: tuple[str, ...]) -> str:
    return "|".join(re.escape(name) + r"\." for name in names)


def _gathering(sequence: Sequence, pair: tuple[Exchange, Exchange]) -> Callable[[Tensor], Tensor]:
    return lambda x: sequence.gather(x, *pair)


def _join_output(sequence: Sequence, output: Any) -> Any:
    if isinstance(output, tuple):
        return (sequence.join(output[0]), *output[1:])
    return sequence.join(output)


def _summing(wiring: GroupWiring, compression: Compression) -> Callable[[Tensor], Tensor]:
    """Return a gradient hook: each rank saw its part of the sequence only."""
    exchange = wiring.exchange("parameters", CompressionRules(), False, compression)
    return lambda grad: exchange.sum(grad)


def _row(module: nn.Module, sequence: Sequence, pair: tuple[Exchange, Exchange], wiring: GroupWiring) -> None:
    assert isinstance(module, nn.Linear)
    wiring.cut_row(module)

    def forward(x: Tensor) -> Tensor:
        own = sequence.scatter(linear_product(x, module.weight), *pair)
        return own if module.bias is None else own + module.bias

    module.forward = forward  # type: ignore[method-assign,assignment]
