"""Boundaries whose compressor is part of the model: encode at the end of a stage, decode at the start of the next.

The message is an ordinary activation to the pipeline: autograd sends back the gradient of the message, as wide as the message.
Both ends hold all parameters of their boundary; ``reduce_gradients`` makes the gradients equal there, so that they stay equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evenflow.comm import Collective, Compressor, Context, GradientRule, get_compressor
from evenflow.mcbench.split.boundary import boundary_rule, boundary_seed
from evenflow.mcbench.split.rules import CompressionRules


class Coders:
    """The compressors at both ends of one stage. Owner of their running numbers, which are equal on both sides."""

    def __init__(self, rules: CompressionRules, index: int, num_stages: int, width: int, like: Tensor) -> None:
        self.index, self.num_stages = index, num_stages
        self.is_used = num_stages > 1 and boundary_rule(rules) is GradientRule.AUTOGRAD

        def make(boundary: int) -> Compressor | None:
            if not self.is_used or not 0 <= boundary < num_stages - 1:
                return None
            compressor = get_compressor(rules.by_site["pp.forward"].spec)
            compressor.prepare(width, boundary_seed(boundary), dtype=like.dtype, device=like.device)
            return compressor

        self.entry, self.exit = make(index - 1), make(index)
        self.number = 0

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable parameters of both ends."""
        for compressor in (self.entry, self.exit):
            if compressor is not None:
                yield from compressor.parameters()

    def message_like(self, hidden: Tensor) -> Tensor:
        """Return an empty message for hidden states of that shape."""
        compressor = self.entry or self.exit
        assert compressor is not None
        size = compressor.wire_plan(hidden.shape, hidden.dtype).payload_bytes // hidden.element_size()
        return torch.empty(size, dtype=hidden.dtype, requires_grad=True)

    def next_context(self) -> Context:
        """Return the context of the micro-batch that comes. Micro-batches pass all stages in the same order."""
        self.number += 1
        return Context((), self.number)

    def reduce_gradients(self, group: Collective) -> None:
        """Sum the gradients of a boundary's parameters over its two stages. All stages must call it."""
        ends = {self.index - 1: self.entry, self.index: self.exit}
        some = next((compressor for compressor in ends.values() if compressor is not None), None)
        if some is None:
            return
        for position, parameter in enumerate(some.parameters()):
            gradients = parameter.new_zeros(self.num_stages - 1, *parameter.shape)
            for boundary, compressor in ends.items():
                if compressor is not None:
                    own = compressor.parameters()[position].grad
                    gradients[boundary] += 0.0 if own is None else own
            total = group.all_reduce(gradients)
            for boundary, compressor in ends.items():
                if compressor is not None:
                    compressor.parameters()[position].grad = total[boundary].clone()
