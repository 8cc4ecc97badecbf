"""How compressed exchanges are put into the modules of a model: over a group of ranks, or virtually in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_product

from evenflow.base.errors import ConfigError
from evenflow.comm import Collective, Compressor, Exchange, Ledger, VirtualExchange
from evenflow.comm.collectives.links import Link, shaped
from evenflow.comm.collectives.stopwatch import Stopwatch, TimedCollective, TimedCompressor
from evenflow.comm.switch import Switch
from evenflow.mcbench.split.families import Segments
from evenflow.mcbench.split.roles import Roles
from evenflow.mcbench.split.rules import CompressionRules


class AnyExchange(Protocol):
    """What ``Compression`` needs of an exchange or boundary, real or virtual."""

    compressor: Compressor
    batch: Hashable


class Compression:
    """The exchanges of one model: their books and their one switch. The model's own forward calls set the switch."""

    def __init__(self, rules: CompressionRules, ledger: Ledger, stopwatch: Stopwatch | None) -> None:
        self.rules = rules
        self.ledger = ledger
        self.stopwatch = stopwatch
        self.exchanges: list[AnyExchange] = []
        self.parameters = nn.ParameterList()
        self.num_steps = 0
        self.switch = Switch()
        self.is_forced: bool | None = None
        """True or False: on or off at evaluation, whatever the rules say."""

    def add(self, exchange: AnyExchange, width: int, seed: int, like: Tensor) -> None:
        """Register an exchange and make its trainable parameters."""
        exchange.compressor.prepare(width, seed, dtype=like.dtype, device=like.device)
        self.exchanges.append(exchange)
        self.parameters.extend(exchange.compressor.parameters())

    def advance(self) -> None:
        """Count one optimiser step (for the warm-up)."""
        self.num_steps += 1

    def name_batch(self, batch: Hashable) -> None:
        """Name the samples that come, for memories that belong to them."""
        for exchange in self.exchanges:
            exchange.batch = batch

    @property
    def is_on(self) -> bool:
        """Whether the exchanges compress now."""
        return self.switch.is_on

    def set_switch(self, is_training: bool) -> None:
        """Turn compression on or off for the forward (and backward) that follows."""
        is_warm = self.num_steps >= self.rules.warmup_steps
        at_eval = self.rules.active_at_eval if self.is_forced is None else self.is_forced
        self.switch.is_on = is_warm and (is_training or at_eval)


class Wiring(Protocol):
    """How the operators f and g are put into modules: over a group, or virtually."""

    world_size: int

    def exchange(self, site: str, rules: CompressionRules, is_chosen: bool, compression: Compression) -> Any: ...

    def row(self, module: nn.Module, exchange: Any) -> None: ...

    def owner(self, module: nn.Module, columns: list[nn.Module], exchange: Any) -> None: ...

    def lone_column(self, module: nn.Module, exchange: Any, segments: Segments = ()) -> None: ...

    def sum_gradients(self, module: nn.Module, compression: Compression) -> None: ...

    def cut_heads(self, modules: dict[str, nn.Module], roles: Roles) -> None: ...


def _on_hidden_states(operator: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Return a forward pre-hook that applies ``operator`` to the hidden states, named or first."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": operator(kwargs["hidden_states"])}
        return (operator(args[0]), *args[1:]), kwargs

    return hook


def _slice(parameter: Tensor, dim: int, rank: int, world_size: int) -> nn.Parameter:
    part = parameter.detach().chunk(world_size, dim)[rank].clone(memory_format=torch.contiguous_format)
    return nn.Parameter(part, requires_grad=parameter.requires_grad)


def _packed_slice(parameter: Tensor, segments: Segments, rank: int, world_size: int) -> Tensor:
    """Return a rank's rows of each segment of a packed weight [sum(segments), ...] or bias, one after the other."""
    return torch.cat([part.chunk(world_size)[rank] for part in parameter.split(segments)])


class GroupWiring:
    """Real ranks: weights are cut, operators talk to the group."""

    def __init__(self, collective: Collective, link: Link | None = None, stopwatch: Stopwatch | None = None) -> None:
        if link is not None:
            collective = shaped(collective, link)
        self.collective = TimedCollective(collective, stopwatch, "tp communication") if stopwatch else collective
        self.stopwatch = stopwatch
        self.rank, self.world_size = collective.rank, collective.world_size

    def exchange(self, site: str, rules: CompressionRules, is_chosen: bool, compression: Compression) -> Exchange:
        compressor, transport = rules.rule(site, is_chosen).make(self.world_size)
        rule = rules.gradients.get(site) if is_chosen else None
        if self.stopwatch is not None:
            compressor = TimedCompressor(compressor, self.stopwatch)
        books = {"ledger": compression.ledger, "switch": compression.switch, "dense_below": rules.dense_below}
        return Exchange(site, compressor, self.collective, transport=transport, rule=rule, **books)

    def row(self, module: nn.Module, exchange: Exchange) -> None:
        assert isinstance(module, nn.Linear)
        self.cut_row(module)

        def forward(x: Tensor) -> Tensor:
            total = exchange.reduce(linear_product(x, module.weight))
            return total if module.bias is None else total + module.bias

        module.forward = forward  # type: ignore[method-assign,assignment]

    def cut_row(self, module: nn.Linear) -> None:
        """Keep the own input features."""
        module.weight = _slice(module.weight, 1, self.rank, self.world_size)
        module.in_features //= self.world_size

    def before(self, module: nn.Module, operator: Callable[[Tensor], Tensor]) -> None:
        """Apply ``operator`` to the hidden states that go into a module."""
        module.register_forward_pre_hook(_on_hidden_states(operator), with_kwargs=True)

    def cut_column(self, module: nn.Module, segments: Segments = ()) -> None:
        """Keep the own output features; of a packed product, those of each of its segments."""
        assert isinstance(module, nn.Linear)

        def own(parameter: Tensor) -> nn.Parameter:
            if not segments:
                return _slice(parameter, 0, self.rank, self.world_size)
            part = _packed_slice(parameter.detach(), segments, self.rank, self.world_size)
            return nn.Parameter(part, requires_grad=parameter.requires_grad)

        module.weight = own(module.weight)
        if module.bias is not None:
            module.bias = own(module.bias)
        module.out_features //= self.world_size

    def owner(self, module: nn.Module, columns: list[nn.Module], exchange: Exchange) -> None:
        for column in columns:
            self.cut_column(column)
        module.register_forward_pre_hook(_on_hidden_states(exchange.copy), with_kwargs=True)

    def lone_column(self, module: nn.Module, exchange: Exchange, segments: Segments = ()) -> None:
        self.cut_column(module, segments)
        module.register_forward_pre_hook(_on_hidden_states(exchange.copy), with_kwargs=True)

    def sum_gradients(self, module: nn.Module, compression: Compression) -> None:
        """Sum the gradients of a module's parameters over ranks, dense, because each rank applied it to its own heads."""
        exchange = self.exchange("parameters", CompressionRules(), False, compression)
        for parameter in module.parameters():
            parameter.register_hook(lambda grad: exchange.sum(grad))

    def cut_heads(self, modules: dict[str, nn.Module], roles: Roles) -> None:
        for name, attribute in roles.head_counts:
            owner: Any = modules[name]
            if attribute.startswith("config."):
                # Other modules, and whoever saves the model, still see the whole number.
                owner.config = copy.copy(owner.config)
                owner, attribute = owner.config, attribute.removeprefix("config.")
            setattr(owner, attribute, getattr(owner, attribute) // self.world_size)
        for name in roles.head_tables:
            table = modules[name]
            assert isinstance(table, nn.Embedding)
            table.weight = _slice(table.weight, 1, self.rank, self.world_size)
            table.embedding_dim //= self.world_size


class VirtualWiring:
    """Virtual ranks: weights stay whole and are cut on the fly; all ranks' products are taken in this process."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def exchange(self, site: str, rules: CompressionRules, is_chosen: bool, compression: Compression) -> VirtualExchange:
        rule = rules.rule(site, is_chosen)
        if rule.spec.startswith("caat"):
            raise ConfigError(
                "caat keeps different channels on each rank and cannot be emulated in one model; start real ranks"
            )
        compressor, transport = rule.make(self.world_size)
        gradient = rules.gradients.get(site) if is_chosen else None
        books = {"ledger": compression.ledger, "switch": compression.switch, "dense_below": rules.dense_below}
        return VirtualExchange(site, compressor, self.world_size, transport=transport, rule=gradient, **books)

    def row(self, module: nn.Module, exchange: VirtualExchange) -> None:
        assert isinstance(module, nn.Linear)
        W = self.world_size

        def forward(x: Tensor) -> Tensor:
            parts = zip(x.chunk(W, -1), module.weight.chunk(W, 1))
            total = exchange.reduce([linear_product(part.contiguous(), weight.contiguous()) for part, weight in parts])
            return total if module.bias is None else total + module.bias

        module.forward = forward  # type: ignore[method-assign,assignment]

    def _column(self, module: nn.Module, copies: Callable[[Tensor], tuple[Tensor, ...]], segments: Segments = ()) -> None:
        assert isinstance(module, nn.Linear)
        W, whole = self.world_size, segments or (module.out_features,)

        def forward(x: Tensor) -> Tensor:
            weights = [_packed_slice(module.weight, whole, rank, W) for rank in range(W)]
            biases = [_packed_slice(module.bias, whole, rank, W) if module.bias is not None else None for rank in range(W)]
            products = [linear_product(c, w, b) for c, w, b in zip(copies(x), weights, biases)]
            by_rank = [product.split([width // W for width in whole], dim=-1) for product in products]
            return torch.cat([parts[s] for s in range(len(whole)) for parts in by_rank], dim=-1)

        module.forward = forward  # type: ignore[method-assign,assignment]

    def owner(self, module: nn.Module, columns: list[nn.Module], exchange: VirtualExchange) -> None:
        current: list[tuple[Tensor, ...]] = []

        def remember(x: Tensor) -> Tensor:
            current[:] = [exchange.copy(x)]
            return x

        module.register_forward_pre_hook(_on_hidden_states(remember), with_kwargs=True)
        for column in columns:
            self._column(column, lambda x: current[0])

    def lone_column(self, module: nn.Module, exchange: VirtualExchange, segments: Segments = ()) -> None:
        self._column(module, exchange.copy, segments)

    def sum_gradients(self, module: nn.Module, compression: Compression) -> None:
        return None  # the one module of this process sees the heads of all virtual ranks

    def cut_heads(self, modules: dict[str, nn.Module], roles: Roles) -> None:
        return None
