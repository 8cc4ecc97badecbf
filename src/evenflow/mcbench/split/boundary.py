"""Pipeline boundaries: which gradient goes back over them, and their emulation in one process.

Three rules for what goes back over a boundary whose activations are compressed:

* straight-through (default): the gradient goes through the compressor of ``pp.backward``, dense if there is none;
* masked: only its entries at the positions that were sent forward; positions are known on both sides and do not travel again
  (the paper's Top-K and Random-K);
* autograd: the gradient of the message, as wide as the message (the paper's auto-encoder; always for learned compressors).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.base.errors import ConfigError
from evenflow.comm import Algebra, Compressor, Context, GradientRule, Ledger, WirePlan, get_compressor
from evenflow.comm.compressor import NO_CONTEXT, Shape
from evenflow.comm.ledger import Kind
from evenflow.comm.switch import Switch
from evenflow.mcbench.split.roles import roles_of
from evenflow.mcbench.split.rules import CompressionRules, stage_layers
from evenflow.mcbench.split.wiring import Compression


def boundary_rule(rules: CompressionRules) -> GradientRule:
    """Return what goes back over a boundary. Raises ConfigError for rules that contradict each other."""
    forward, backward = rules.by_site.get("pp.forward"), rules.by_site.get("pp.backward")
    if forward is None:
        return GradientRule.STRAIGHT_THROUGH
    compressor, _ = forward.make(2)
    asked = rules.gradients.get("pp.forward")
    rule = asked or GradientRule.STRAIGHT_THROUGH
    if compressor.is_learned:
        if asked not in (None, GradientRule.AUTOGRAD):
            raise ConfigError(f"pp.forward={forward.spec} is trained; its gradient rule can only be autograd, not {rule.value}")
        rule = GradientRule.AUTOGRAD
    if rule is GradientRule.AUTOGRAD and (compressor.algebra is not Algebra.LINEAR or compressor.rounds > 1):
        raise ConfigError(
            f"pp.forward={forward.spec}: gradient rule autograd needs a linear compressor of one round; "
            "allowed: straight-through, same, masked"
        )
    if rule in (GradientRule.AUTOGRAD, GradientRule.MASKED) and backward is not None and backward != forward:
        raise ConfigError(f"pp.backward={backward.spec}, but the gradient rule is {rule.value}: leave one of them out")
    return rule


def boundary_seed(index: int) -> int:
    """Return the seed of the parameters of a boundary: equal in one process and on real ranks."""
    return 10_000 + index


def width_of(model: nn.Module) -> int:
    """Return the width of the hidden states of a transformers model."""
    config: Any = model.config
    return getattr(config, "hidden_size", None) or config.d_model


def backward_spec(rules: CompressionRules) -> str:
    """Return the compressor of gradients under a straight-through or same rule."""
    if (
        rules.gradients.get("pp.forward") is GradientRule.SAME
        and "pp.backward" not in rules.by_site
        and "pp.forward" in rules.by_site
    ):
        return rules.by_site["pp.forward"].spec
    return rules.rule("pp.backward").spec


class Kept(Compressor):
    """The entries of a gradient at positions that both sides know from the forward message."""

    algebra = Algebra.LINEAR
    by_rows = False
    spec = "kept"

    def __init__(self, decoded: Tensor) -> None:
        super().__init__()
        self.index = decoded.detach().reshape(-1).nonzero().view(-1)

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        return WirePlan(len(self.index) * dtype.itemsize)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return x.reshape(-1)[self.index]

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        out = torch.zeros(tuple(shape), dtype=dtype, device=message.device)
        out.view(-1)[self.index] = message.to(dtype)
        return out


class Boundary:
    """One emulated pipeline boundary: what the next stage would receive, micro-batch by micro-batch."""

    def __init__(self, rules: CompressionRules, ledger: Ledger, switch: Switch, index: int, num_microbatches: int) -> None:
        self.switch = switch
        self.ledger, self.index, self.num_microbatches = ledger, index, num_microbatches
        self.rule = boundary_rule(rules)
        # Sender and receiver keep memories of their own. Parameters are shared, as one process trains them.
        forward = rules.rule("pp.forward")
        self.compressor = forward.make(2)[0]
        receiver = self.compressor if self.rule is GradientRule.AUTOGRAD else forward.make(2)[0]
        self.forward_pair = (self.compressor, receiver)
        self.backward_pair = (get_compressor(backward_spec(rules)), get_compressor(backward_spec(rules)))
        self.number = 0
        self.batch: Hashable = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the hidden states of the next stage."""
        self.number += 1
        if not self.switch.is_on or self.rule is not GradientRule.AUTOGRAD:
            return _Boundary.apply(x, self)
        return torch.cat([self._through(part, chunk) for chunk, part in enumerate(self.chunks(x))])

    def chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the micro-batches of a batch."""
        return x.chunk(min(self.num_microbatches, x.shape[0]))

    def context(self, number: int, chunk: int) -> Context:
        """Return the context of a message."""
        return Context((self.batch, self.index, chunk), number * self.num_microbatches + chunk)

    def _through(self, part: Tensor, chunk: int) -> Tensor:
        """Encode and decode differentiably; the gradient of the message is what goes back."""
        context = self.context(self.number, chunk)
        message = self.compressor.encode(part, context)
        self.note("pp.forward", self.compressor.wire_plan(part.shape, part.dtype).payload_bytes, message)
        if message.requires_grad:
            message.register_hook(lambda grad: self.note("pp.backward", grad.numel() * grad.element_size(), grad))
        return self.compressor.decode(message, part.shape, part.dtype, context)

    def note(self, site: str, planned: int, message: Tensor) -> None:
        """Note one message in the books."""
        self.ledger.expect(site, planned)
        self.ledger.count(site, Kind.SEND, message.numel() * message.element_size(), 2)

    def carry(self, x: Tensor, site: str, pairs: list[tuple[Compressor, Compressor]], number: int) -> list[Tensor]:
        """Return what the receiver decodes of each micro-batch, with one (sender, receiver) for each."""
        parts = []
        for chunk, (part, (sender, receiver)) in enumerate(zip(self.chunks(x), pairs)):
            context = self.context(number, chunk)
            message = sender.encode(part, context)
            self.note(site, sender.wire_plan(part.shape, part.dtype).payload_bytes, message)
            parts.append(receiver.decode(message, part.shape, part.dtype, context))
        return parts


class _Boundary(torch.autograd.Function):
    """Encode and decode forward; the gradient backward by the rule, micro-batch by micro-batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, boundary: Boundary) -> Tensor:
        count = boundary.num_microbatches
        ctx.boundary, ctx.number, dense = boundary, boundary.number, (get_compressor("none"),) * 2
        parts = boundary.carry(x, "pp.forward", [boundary.forward_pair if boundary.switch.is_on else dense] * count, ctx.number)
        ctx.pairs = [boundary.backward_pair if boundary.switch.is_on else dense] * count
        if boundary.switch.is_on and boundary.rule is GradientRule.MASKED:
            ctx.pairs = [(Kept(part),) * 2 for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.cat(ctx.boundary.carry(grad, "pp.backward", ctx.pairs, ctx.number)), None


def emulate_boundaries(model: nn.Module, num_stages: int, compression: Compression, num_microbatches: int) -> list[Boundary]:
    """Put emulated boundaries between the layers of ``num_stages`` stages of a model in one process."""
    roles = roles_of(model)
    modules = dict(model.named_modules())
    made = []
    for index, own in enumerate(stage_layers(roles.num_layers, num_stages)[:-1]):
        boundary = Boundary(compression.rules, compression.ledger, compression.switch, index, num_microbatches)
        compression.add(boundary, width_of(model), boundary_seed(index), next(model.parameters()))

        def hook(module: nn.Module, args: Any, output: Any, boundary: Boundary = boundary) -> Any:
            if isinstance(output, tuple):
                return (boundary(output[0]), *output[1:])
            return boundary(output)

        modules[roles.layers[own[-1]]].register_forward_hook(hook)
        made.append(boundary)
    return made
