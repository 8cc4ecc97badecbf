"""One process's place among tensor-parallel ranks: its group, its shard and its device."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from evenflow.base.errors import ConfigError, WireError
from evenflow.comm.collectives.collective import Collective, TorchCollective
from evenflow.comm.collectives.shared_memory import SharedMemoryCollective, is_supported
from evenflow.comm.ledger import Ledger
from evenflow.serving.backends.choose import LORA_BACKENDS, BackendNames, by_name, choose
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.core.shard import Shard, check_divisible
from evenflow.serving.models.load import resolve_dtype
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.parallel.group import Group, OneRank
from evenflow.serving.parallel.rank_group import RankGroup, serving_compressor
from evenflow.serving.parallel.sharding import WIRES, exchanged_sites

log = logging.getLogger("evenflow.engine")


@dataclass(frozen=True, slots=True)
class Membership:
    """Rank ``group.rank`` of ``group.world_size``."""

    group: Group
    device: torch.device
    dtype: torch.dtype
    shard: Shard | None = None
    """This rank's part of the model; None: the whole model."""
    ledger: Ledger | None = None
    """Books of the bytes that this rank has sent; None in a world of one."""

    def smallest(self, number: int) -> int:
        """The smallest ``number`` that any rank has passed; every rank must call this."""
        if self.group.world_size == 1:
            return number
        return int(self.group.all_gather(torch.tensor([number], device=self.device), "start").min())

    def barrier(self) -> None:
        """Return once every rank has called this."""
        self.smallest(0)

    def leave(self) -> None:
        """Give the process group back."""
        if self.group.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def alone(config: EngineConfig) -> Membership:
    """A world of one."""
    device = resolve_device(config.device)
    return Membership(OneRank(), device, resolve_dtype(config.dtype, device))


def check_parallel(config: EngineConfig, model: ModelConfig) -> None:
    """Raise ConfigError unless the ranks that ``config`` asks for can share ``model``, and this machine has their devices."""
    if config.tensor_parallel == 1:
        if config.compress != "none":
            raise ConfigError(f"compress is {config.compress!r}; one rank sends nothing; allowed with 2 ranks or more")
        return
    check_divisible(model.shape, config.tensor_parallel)
    serving_compressor(config.compress, model.shape.hidden_size, config.tensor_parallel)
    device = resolve_device(config.device)
    if device.type == "cuda" and (device.index is not None or torch.cuda.device_count() < config.tensor_parallel):
        raise ConfigError(
            f"tensor_parallel is {config.tensor_parallel} on {config.device}; this machine has {torch.cuda.device_count()} "
            "CUDA devices: allowed: cuda, with a device for each rank"
        )


def join(config: EngineConfig, model: ModelConfig, rank: int, folder: Path) -> Membership:
    """Meet the other ranks in ``folder``: gloo on the CPU, nccl on CUDA. Blocks until all are there."""
    world_size, device = config.tensor_parallel, resolve_device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dtype = resolve_dtype(config.dtype, device)
    names = backend_names(config, device, dtype, Shard(model.shape, rank, world_size).shape)
    sharding = config.lora_sharding
    if sharding == "auto" and not hasattr(LORA_BACKENDS.load(names.lora), "shrink"):
        sharding = "replicated"  # This backend cannot compute A and B apart, so that nothing can be exchanged between them.
    sites = exchanged_sites(sharding, model.shape, world_size, dtype.itemsize, config.max_num_seqs, WIRES[device.type])
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    group = RankGroup(_collective(device), config.compress, model.shape.hidden_size)
    return Membership(group, device, dtype, Shard(model.shape, rank, world_size, sites), group.ledger)


def _collective(device: torch.device) -> Collective:
    """What carries the ranks' messages: on one CPU the memory they share, where there is some."""
    inner = TorchCollective()
    if device.type != "cpu" or not is_supported():
        return inner
    try:
        return SharedMemoryCollective(inner)
    except WireError as error:
        log.warning("ranks speak through gloo, which is slower: %s", error)
        return inner


def backend_names(config: EngineConfig, device: torch.device, dtype: torch.dtype, shape: ModelShape) -> BackendNames:
    """The backends that ``config`` asks for, or the fastest for a model, or a shard, of ``shape``."""
    return choose(device, dtype, shape) if config.kernels == "auto" else by_name(config.kernels)


def resolve_device(name: str) -> torch.device:
    """``auto``: the first CUDA device if there is one, else the CPU. Raises ConfigError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r}; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


__all__ = ["Membership", "alone", "backend_names", "check_parallel", "join", "resolve_device"]
