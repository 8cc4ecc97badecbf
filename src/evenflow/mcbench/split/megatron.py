"""Megatron-Core's row-parallel layers with compressed sums: an optional extra (``evenflow[megatron]``).

Only ``RowParallelLinear`` is touched: its product is taken by Megatron, its sum over ranks by an exchange. The sums of
gradients in front of column-parallel layers are Megatron's own, fused with the weight gradient, and stay dense; so do its
pipelines.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from evenflow.base.errors import ConfigError
from evenflow.comm import Exchange, Ledger, TorchCollective
from evenflow.mcbench.split.rules import CompressionRules


def compress_megatron(model: nn.Module, spec: str, modules: str = ".*", *, ledger: Ledger | None = None) -> nn.ParameterList:
    """Compress the sums of all ``RowParallelLinear`` of ``model`` whose names match; return what must be trained with it.

    Only ``tp.forward`` can be given. Raises ConfigError without megatron-core, for other sites, for sequence-parallel layers,
    and if nothing matches.
    """
    try:
        from megatron.core.tensor_parallel.layers import RowParallelLinear
    except ImportError as error:
        raise ConfigError(f"Megatron models need megatron-core: {error}") from None
    rules = CompressionRules.parse(spec, modules=modules)
    if others := sorted(set(rules.by_site) - {"tp.forward"}):
        raise ConfigError(f"rules for {', '.join(others)}; allowed on a Megatron model: tp.forward")
    chosen = [
        module for name, module in model.named_modules() if isinstance(module, RowParallelLinear) and re.search(modules, name)
    ]
    if not chosen:
        raise ConfigError(f"module pattern {modules!r} matches no RowParallelLinear")
    books, learned = ledger if ledger is not None else Ledger(), nn.ParameterList()
    for seed, layer in enumerate(chosen):
        if layer.sequence_parallel:
            raise ConfigError("sequence-parallel RowParallelLinear scatters its sum; allowed: sequence_parallel=False")
        collective = TorchCollective(layer.tp_group)
        compressor, transport = rules.rule("tp.forward").make(collective.world_size)
        exchange = Exchange("tp.forward", compressor, collective, transport=transport, ledger=books)
        compressor.prepare(layer.output_size, seed, dtype=layer.weight.dtype, device=layer.weight.device)
        learned.extend(compressor.parameters())
        layer.forward = _forward(layer, exchange)
    return learned


def _forward(layer: Any, exchange: Exchange) -> Any:
    """Return a forward with Megatron's result: (output, None), or (output, bias) under skip_bias_add."""

    def forward(x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not layer.input_is_parallel:
            raise ConfigError("a RowParallelLinear with a whole input is not compressed; allowed: input_is_parallel=True")
        local = layer._forward_impl(
            input=x,
            weight=layer.weight,
            bias=None,
            gradient_accumulation_fusion=layer.gradient_accumulation_fusion,
            allreduce_dgrad=False,
            sequence_parallel=False,
            tp_group=None,
            grad_output_buffer=None,
        )
        total = exchange.reduce(local)
        if layer.skip_bias_add:
            return total, layer.bias
        return (total if layer.bias is None else total + layer.bias), None

    return forward
