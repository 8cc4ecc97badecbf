"""FSDP2 with compressed traffic: quantised weight gathers and gradient scatters, as qwZ and qgZ of ZeRO++ (2306.10209).

    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    traffic = compress_fsdp(model, weights="int8-g32", gradients="ef(int4-g32)")

Every rank computes with the decoded weights of all shards, its own included, so all ranks hold the same weights; the optimiser
keeps the exact shard. Gradients are encoded piece by piece, sent to the shard's owner, and decoded and summed there in at least
fp32. ZeRO++'s third part, a second copy of the weights within a node, is not here: it saves traffic, and compresses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evenflow.base.errors import ConfigError
from evenflow.comm.collectives.links import Link
from evenflow.comm.compressor import Compressor
from evenflow.comm.data_parallel.traffic import GRADIENTS, WEIGHTS, DataParallelTraffic, make_rule
from evenflow.comm.exchange import Exchange
from evenflow.comm.ledger import Ledger


def compress_fsdp(
    model: nn.Module,
    weights: str = "none",
    gradients: str = "none",
    *,
    group: dist.ProcessGroup | None = None,
    link: Link | None = None,
    ledger: Ledger | None = None,
) -> DataParallelTraffic:
    """Send what FSDP2 gathers and scatters through compressors; return the books and the switch.

    ``weights`` and ``gradients`` are compressors' specs. Shards are flat vectors of many weights, so only compressors that need
    no rows are taken. ``group`` is the group that shards (None: the default group). ``model`` must hold modules of
    ``fully_shard``. Raises ConfigError for others, and for compressors that cannot work here.
    """
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError as error:
        raise ConfigError(f"FSDP2 needs torch 2.6 or later: {error}") from error
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not modules:
        raise ConfigError(f"{type(model).__name__} holds no module of fully_shard: shard it first")
    if not hasattr(modules[0], "set_custom_all_gather"):
        raise ConfigError("this version of torch lets nobody replace FSDP2's collectives; allowed: torch 2.9 or later")
    for site, spec in ((WEIGHTS, weights), (GRADIENTS, gradients)):
        compressor, transport = make_rule(spec)
        if compressor.by_rows or compressor.rounds > 1:
            raise ConfigError(f"{site}={spec}: shards have no rows; allowed: casts, group quantisers, floats, sparse methods")
        if transport is not None:
            raise ConfigError(f"{site}={spec}: FSDP gathers and scatters; allowed: {compressor.spec}")
        if site == WEIGHTS and _remembers(compressor):
            raise ConfigError(f"{site}={spec}: a weight is gathered several times a step; allowed: {spec[3:-1] or spec}")
    traffic = DataParallelTraffic(group, link, ledger)
    for module in modules:
        module.set_custom_all_gather(_gather(traffic.exchange(WEIGHTS, weights)))
        module.set_custom_reduce_scatter(_scatter(traffic.exchange(GRADIENTS, gradients)))
    return traffic


def _remembers(compressor: Compressor) -> bool:
    return compressor.spec.startswith(("ef(", "aqsgd"))


class _Allocates:
    """How FSDP gets the memory of its messages."""

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


def _gather(exchange: Exchange) -> Any:
    """Return FSDP's all-gather over an exchange; the class is made here because older versions of torch have no base of it."""
    from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather

    class CompressedAllGather(_Allocates, AllGather):
        def __call__(
            self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
        ) -> dist.Work | None:
            output_tensor.copy_(exchange.gather(input_tensor).view_as(output_tensor))
            return None

    return CompressedAllGather()


def _scatter(exchange: Exchange) -> Any:
    """Return FSDP's reduce-scatter over an exchange."""
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

    class CompressedReduceScatter(_Allocates, ReduceScatter):
        def __call__(
            self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
        ) -> dist.Work | None:
            own = exchange.scatter(input_tensor).view_as(output_tensor)
            if op == dist.ReduceOp.AVG:
                own = own.div_(exchange.member.world_size)
            elif op != dist.ReduceOp.SUM:
                raise ConfigError(f"gradients reduced by {op}; allowed: the mean or the sum")
            output_tensor.copy_(own)
            return None

    return CompressedReduceScatter()
