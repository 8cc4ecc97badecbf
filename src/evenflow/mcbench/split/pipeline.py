"""Pipeline parallelism with compressed boundaries, on torch.distributed.pipelining's own stages and schedules.

``StageModule`` makes a stage of an unmodified model by running its own forward: layers of other stages are passed through, the
received hidden states enter at the first own layer, and the forward ends after the last one. So masks, positions and
heads are the model's own business, in every family. Embeddings are looked up on every stage, which costs little and needs
no second copy of the model's code.

``CompressedPipelineStage`` replaces what a stage sends and receives by encoded messages; schedules do not notice. Learned
compressors are part of the stage modules instead (``coders``).
``boundary`` emulates the same in one process.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.comm import Collective, Compressor, Context, GradientRule, get_compressor
from evenflow.comm.exchange import empty_message
from evenflow.comm.ledger import Kind
from evenflow.mcbench.split.boundary import Kept, backward_spec, boundary_rule
from evenflow.mcbench.split.coders import Coders
from evenflow.mcbench.split.parity import first_tensor
from evenflow.mcbench.split.roles import Roles, roles_of
from evenflow.mcbench.split.rules import stage_layers
from evenflow.mcbench.split.wiring import Compression

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class _StageEnd(Exception):
    """Ends the model's forward after the last own layer. Carries the hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class StageModule(nn.Module):
    """One pipeline stage of a model. Parameters of other stages are dropped."""

    def __init__(
        self,
        model: nn.Module,
        index: int,
        num_stages: int,
        compression: Compression | None = None,
        coders: Coders | None = None,
    ) -> None:
        super().__init__()
        roles = roles_of(model)
        self.coders = coders if coders is not None and coders.is_used else None
        self.coder_parameters = nn.ParameterList(self.coders.parameters() if self.coders is not None else [])
        self.hidden_shape: torch.Size | None = None
        """Shape of the hidden states of the micro-batch that comes; needed to decode a message."""
        own = stage_layers(roles.num_layers, num_stages)[index]
        self.is_first, self.is_last = index == 0, index == num_stages - 1
        self.compression = compression
        self._received: Tensor | None = None
        modules = dict(model.named_modules())
        for number, name in enumerate(roles.layers):
            if number not in own:
                parent, _, child = name.rpartition(".")
                modules[parent]._modules[child] = _stand_in(modules[name], roles)
        layers = dict(model.named_modules())
        if not self.is_first:
            layers[roles.layers[own[0]]].register_forward_pre_hook(self._enter, with_kwargs=True)
        if not self.is_last:
            layers[roles.layers[own[-1]]].register_forward_hook(self._leave)
        self.model = model

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert self._received is not None
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": self._received}
        return (self._received, *args[1:]), kwargs

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        raise _StageEnd(output[0] if isinstance(output, tuple) else output)

    def forward(self, x: Tensor, **inputs: Tensor) -> Tensor:
        """Return hidden states, or logits on the last stage. ``x`` is ignored on the first stage."""
        if self.compression is not None:
            self.compression.set_switch(self.training)
        coders = self.active_coders
        context = coders.next_context() if coders is not None else None
        if coders is not None and coders.entry is not None and context is not None:
            assert self.hidden_shape is not None
            x = coders.entry.decode(x, self.hidden_shape, x.dtype, context)
        self._received = x
        try:
            return first_tensor(self.model.forward(**inputs))
        except _StageEnd as end:
            if coders is None or coders.exit is None or context is None:
                return end.hidden
            return coders.exit.encode(end.hidden, context).reshape(-1)
        finally:
            self._received = None

    @property
    def active_coders(self) -> Coders | None:
        """The coders, unless compression is off for now."""
        return self.coders if self.compression is None or self.compression.is_on else None


class _PassThrough(nn.Module):
    """Stands for a layer of another stage that returns its hidden states alone."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states


class _PassThroughT5(nn.Module):
    """Stands for a T5 block of another stage: the position bias that came in goes on."""

    def forward(self, hidden_states: Tensor, mask: Any = None, position_bias: Any = None, *args: Any, **kwargs: Any) -> Any:
        return hidden_states, position_bias, None


class _FirstT5(nn.Module):
    """Stands for T5's first block on a later stage: the position bias that all blocks share is made there.

    Its table is kept, under its own name, so that its gradients can be summed over stages.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.layer[0].SelfAttention
        for name in ("q", "k", "v", "o"):
            setattr(attention, name, None)
        holder = nn.Module()
        holder.SelfAttention = attention
        self.layer = nn.ModuleList([holder])

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        length = hidden_states.shape[1]
        attention: Any = self.layer[0].SelfAttention
        return hidden_states, attention.compute_bias(length, length, device=hidden_states.device), None


def _stand_in(layer: nn.Module, roles: Roles) -> nn.Module:
    """Return what the model finds in the place of a layer of another stage."""
    if not type(layer).__name__.startswith("T5"):
        return _PassThrough()
    has_table = any(isinstance(module, nn.Embedding) for module in layer.modules())
    return _FirstT5(layer) if has_table else _PassThroughT5()


class CompressedPipelineStage(PipelineStage):
    """A pipeline stage whose activations and gradients travel encoded.

    ``begin`` must be called before each schedule step: it seeds shared randomness and names the batch for memories.
    """

    def __init__(
        self,
        module: nn.Module,
        index: int,
        num_stages: int,
        group: dist.ProcessGroup,
        hidden: Tensor,
        output: Tensor,
        compression: Compression,
        num_microbatches: int,
    ) -> None:
        device = torch.device("cpu")
        super().__init__(module, index, num_stages, device, input_args=(hidden,), output_args=(output,), group=group)
        rules = compression.rules
        self.ledger, self.switch = compression.ledger, compression.switch
        self.num_microbatches = num_microbatches
        self.rule = boundary_rule(rules)
        self._dense = get_compressor("none")
        # Under the autograd rule the stage module itself encodes: what travels here is a message already.
        is_coded = self.rule is GradientRule.AUTOGRAD
        self.forward_compressor = self._dense if is_coded else get_compressor(rules.rule("pp.forward").spec)
        self.backward_compressor = self._dense if is_coded else get_compressor(backward_spec(rules))
        refuse_learned("pp.backward", self.backward_compressor)
        self._kept: dict[tuple[int, int, bool], Kept] = {}
        self._forward_messages: dict[int, list[Tensor]] = {}
        self._backward_messages: dict[int, list[Tensor]] = {}
        self._number = 0
        self._batch: Hashable = ()

    def begin(self, number: int, batch: Hashable) -> None:
        """Name the step that follows: a running number and a batch, equal on all ranks."""
        self._number, self._batch = number, batch

    def _compressor(self, is_forward: bool, chunk: int, part: int) -> Compressor:
        if not self.switch.is_on:
            return self._dense
        if is_forward:
            return self.forward_compressor
        return self.backward_compressor

    def _masked(self, chunk: int, part: int, is_sender: bool) -> Compressor:
        """Return what carries the gradient of a micro-batch: the own end of the forward message decides the positions."""
        kept = self._kept.get((chunk, part, is_sender))
        return kept if kept is not None and self.switch.is_on else self._compressor(False, chunk, part)

    def _keep(self, decoded: Tensor, chunk: int, part: int, is_sender: bool) -> None:
        if self.rule is GradientRule.MASKED and self.switch.is_on:
            self._kept[chunk, part, is_sender] = Kept(decoded)

    def _context(self, chunk: int, part: int) -> Context:
        return Context((self._batch, chunk, part), self._number * self.num_microbatches + chunk)

    def _encode(self, ops: list[dist.P2POp], chunk: int, is_forward: bool) -> list[dist.P2POp]:
        site = "pp.forward" if is_forward else "pp.backward"
        for part, op in enumerate(ops):
            # The gradient goes back to where this stage received from.
            compressor = self._compressor(True, chunk, part) if is_forward else self._masked(chunk, part, is_sender=False)
            shape, dtype, context = op.tensor.shape, op.tensor.dtype, self._context(chunk, part)
            self.ledger.expect(site, compressor.wire_plan(shape, dtype).payload_bytes)
            op.tensor = compressor.encode(op.tensor.detach(), context).contiguous()
            if is_forward and self.rule is GradientRule.MASKED:
                self._keep(compressor.decode(op.tensor, shape, dtype, context), chunk, part, is_sender=True)
            self.ledger.count(site, Kind.SEND, op.tensor.numel() * op.tensor.element_size(), 2)
        return ops

    def _expect(self, ops: list[dist.P2POp], chunk: int, is_forward: bool) -> list[Tensor]:
        for part, op in enumerate(ops):
            compressor = self._compressor(True, chunk, part) if is_forward else self._masked(chunk, part, is_sender=True)
            op.tensor = empty_message(compressor, op.tensor.shape, op.tensor.dtype)
        return [op.tensor for op in ops]

    def _decode(self, infos: Sequence[Any], messages: list[Tensor], chunk: int, is_forward: bool) -> None:
        buffers = [info for info in infos if not info.is_root_arg and info.buffer is not None]
        for part, (info, message) in enumerate(zip(buffers, messages, strict=True)):
            compressor = self._compressor(True, chunk, part) if is_forward else self._masked(chunk, part, is_sender=True)
            shape, dtype = info.buffer.shape, info.buffer.dtype
            info.buffer = compressor.decode(message, shape, dtype, self._context(chunk, part)).detach()
            if is_forward:
                self._keep(info.buffer, chunk, part, is_sender=False)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return self._encode(super().get_fwd_send_ops(fwd_chunk_id), fwd_chunk_id, True)

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return self._encode(super().get_bwd_send_ops(bwd_chunk_id), bwd_chunk_id, False)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        ops = super().get_fwd_recv_ops(fwd_chunk_id)
        self._forward_messages[fwd_chunk_id] = self._expect(ops, fwd_chunk_id, True)
        return ops

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        ops = super().get_bwd_recv_ops(bwd_chunk_id)
        self._backward_messages[bwd_chunk_id] = self._expect(ops, bwd_chunk_id, False)
        return ops

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> Any:
        messages = self._forward_messages.pop(fwd_chunk_id, [])
        self._decode(self.args_recv_info[fwd_chunk_id], messages, fwd_chunk_id, True)
        return super()._retrieve_recv_activations(fwd_chunk_id)

    def _retrieve_recv_grads(self, bwd_chunk_id: int) -> Any:
        messages = self._backward_messages.pop(bwd_chunk_id, [])
        self._decode(self.grad_recv_info[bwd_chunk_id], messages, bwd_chunk_id, False)
        return super()._retrieve_recv_grads(bwd_chunk_id)


def refuse_learned(site: str, compressor: Compressor) -> None:
    """Raise ConfigError for a learned compressor of gradients, which nothing would train."""
    if compressor.is_learned:
        raise ConfigError(
            f"{site}={compressor.spec}: compressors of gradients cannot be trained; allowed: one that is not learned"
        )


def make_schedule(name: str, stage: CompressedPipelineStage, loss: Any) -> Any:
    """Return a schedule of torch.distributed.pipelining: gpipe or 1f1b. Raises RegistryError."""
    if name not in SCHEDULES:
        raise RegistryError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    return SCHEDULES[name](stage, stage.num_microbatches, loss_fn=loss)


def reduce_tied_gradients(stage: StageModule, tied: Sequence[str], group: Collective) -> None:
    """Sum over stages the gradients of weights that the embedding and the head share (Megatron does the same)."""
    parameters = dict(stage.model.named_parameters())
    for name in tied:
        parameter = parameters[name]
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        parameter.grad = group.all_reduce(grad)


def tied_parameters(model: nn.Module) -> list[str]:
    """Return the names of parameters that several stages use: those with two names, and T5's position bias."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tables = [f"{table}.weight" for table in roles_of(model).head_tables]
    return [several[0] for several in names.values() if len(several) > 1] + tables
