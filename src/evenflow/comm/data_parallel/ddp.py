"""DistributedDataParallel with compressed gradients: any compressor of this package as its communication hook.

    model = DistributedDataParallel(model)
    traffic = compress_ddp(model, "ef(int4-g32)")

Error feedback (``ef(...)``) keeps what a message left out and adds it to the next gradient of the same weights, with which
sparse and low-bit gradients converge (Karimireddy et al. 2019, 1901.09847). Unlike activations, gradients of successive steps
are estimates of nearly the same thing.
"""

# Annotations stay objects here: DistributedDataParallel looks at those of its hooks.
from collections.abc import Hashable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from evenflow.comm.collectives.links import Link
from evenflow.comm.collectives.stopwatch import Stopwatch
from evenflow.comm.data_parallel.traffic import GRADIENTS, DataParallelTraffic
from evenflow.comm.ledger import Ledger
from evenflow.comm.switch import Switch


def compress_ddp(
    model: DistributedDataParallel,
    spec: str,
    *,
    link: Link | None = None,
    ledger: Ledger | None = None,
    switch: Switch | None = None,
    stopwatch: Stopwatch | None = None,
) -> DataParallelTraffic:
    """Register a communication hook that sends gradients through SPEC, ``compressor[/transport]``; return its books and switch.

    Compressors for which the last dimension has a meaning (PowerSGD, quantisers by channel, SRHT) see every gradient with two
    and more dimensions as a matrix [rows, width] of its own, and send vectors dense; all others see a whole bucket [n]. The
    result has the bucket's dtype and is the mean over ranks, as DistributedDataParallel's own. All ranks must call it alike,
    once, before the first backward pass. Raises RegistryError or ConfigError for a SPEC that cannot work.
    """
    traffic = DataParallelTraffic(model.process_group, link, ledger, switch, stopwatch)
    average = _Average(model, spec, traffic)

    def hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(average(bucket))
        return done

    model.register_comm_hook(None, hook)
    return traffic


class _Average:
    """Turns a bucket of gradients into their mean over ranks."""

    def __init__(self, model: DistributedDataParallel, spec: str, traffic: DataParallelTraffic) -> None:
        self.exchange = traffic.exchange(GRADIENTS, spec)
        self.dense = traffic.exchange(GRADIENTS, "none")
        self.world_size = traffic.collective.world_size
        # Buckets are formed anew after the first step, so memories belong to the weights in a bucket and not to its number.
        self.number_of = {id(parameter): number for number, parameter in enumerate(model.module.parameters())}

    def __call__(self, bucket: dist.GradBucket) -> Tensor:
        flat = bucket.buffer()
        key = tuple(self.number_of[id(parameter)] for parameter in bucket.parameters())
        if self.exchange.compressor.by_rows:
            for number, gradient in zip(key, bucket.gradients(), strict=True):
                gradient.copy_(self._sum(gradient, number))
            total = flat
        else:
            total = self.exchange.sum(flat, key)
        return total.div_(self.world_size)

    def _sum(self, gradient: Tensor, number: Hashable) -> Tensor:
        if gradient.dim() < 2:
            return self.dense.sum(gradient, number)
        matrix = gradient.reshape(gradient.shape[0], -1)
        return self.exchange.sum(matrix, number).view_as(gradient)
