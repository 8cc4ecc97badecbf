"""The tensors of one rank, put together and warm: what rank 0 and the other ranks build alike, in step."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from evenflow.base.errors import ConfigError
from evenflow.base.memory_size import format_size, free_memory_bytes, total_memory_bytes
from evenflow.base.progress import Tell, tell_nobody
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.bounded_reading import BoundedReading
from evenflow.serving.adapters.reading import AdapterReading, InProcessReading
from evenflow.serving.adapters.row_store import RowStore
from evenflow.serving.backends.choose import LORA_BACKENDS, BackendNames
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.backends.lora.side_weights import SidedLoRA, SideWeights
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.load import load_model
from evenflow.serving.models.model_attention import make_attention
from evenflow.serving.models.model_config import ModelConfig, load_config
from evenflow.serving.parallel.sharded_lora import ExchangedLoRA
from evenflow.serving.runner.forward import EagerForward, Forward, GraphedForward, graph_sizes
from evenflow.serving.runner.membership import Membership, backend_names
from evenflow.serving.runner.sampler import Sampler
from evenflow.serving.runner.worker import HostSide, Worker

log = logging.getLogger("evenflow.engine")


@dataclass(frozen=True, slots=True)
class BuiltWorker:
    """A warm worker, and what the floors above need to know of it. Page numbers and sizes are equal on all ranks."""

    worker: Worker
    layout: ArenaLayout
    num_pages: int
    max_model_len: int
    names: BackendNames


def build_worker(
    config: EngineConfig,
    model_config: ModelConfig,
    membership: Membership,
    sampler: Sampler | None,
    host_rows: HostSide,
    tell: Tell = tell_nobody,
) -> BuiltWorker:
    """Load the rank's weights, lay out its arena, compile the kernels. ``sampler``: None on ranks that sample nothing.

    All ranks of the group call it, with the same config. Raises ModelError or ConfigError.
    """
    device, dtype, shard, group = membership.device, membership.dtype, membership.shard, membership.group
    model = load_model(
        config.model, model_config, dtype, device, group, shard, config.quantization, matrix_folder(config), tell
    )
    if shard is None:
        layout = ArenaLayout(model_config.shape, dtype.itemsize, config.page_tokens)
    else:
        layout = ArenaLayout.of_shard(shard, dtype.itemsize, config.page_tokens)
    membership.barrier()  # Free memory is measured next: no rank may still be loading its part of the model.
    num_pages = membership.smallest(arena_pages(config, layout, device))
    max_model_len = context_length(config, model_config, layout, num_pages)
    storage = Storage(layout, num_pages, dtype, device)
    names = backend_names(config, device, dtype, layout.shape)
    attention = make_attention(names.attention, storage, model_config, max_model_len)
    lora: LoRABackend = LORA_BACKENDS.load(names.lora)(storage)
    if shard is not None and shard.exchanged:
        lora = ExchangedLoRA(lora, shard, group)
    lora = SidedLoRA(lora, SideWeights(storage, model_config.shape.vocab_size))
    eager = EagerForward(model, storage, attention, lora)
    # Which experts a step needs is known to the host only when it runs, so that no graph can be recorded of it.
    is_graphed = device.type == "cuda" and shard is None and names == BackendNames("triton", "triton")
    is_graphed = is_graphed and not config.enforce_eager and model_config.mixture is None
    forward: Forward = GraphedForward(eager, graph_sizes(config.max_num_seqs)) if is_graphed else eager
    worker = Worker(model, storage, attention, lora, sampler, host_rows, forward=forward)
    worker.warm_up(min(config.max_batch_tokens, max_model_len), config.max_num_seqs, tell)
    return BuiltWorker(worker, layout, num_pages, max_model_len, names)


def matrix_folder(config: EngineConfig) -> Path | None:
    """Where quantised weights are kept between starts, beside the converted adapters; None: they are not."""
    return None if config.adapter_cache is None else config.adapter_cache.parent / "quantised"


def row_store(config: EngineConfig, layout: ArenaLayout, *, is_bounded: bool) -> RowStore | None:
    """The rank's store of adapters' rows on disk; None: they are kept in memory.

    ``is_bounded``: folders are read in a process of their own, as a server must; else in this one.
    """
    if config.adapter_cache is None:
        return None
    roots = [Path(root) for root in config.adapter_roots]
    base = base_weights(config)
    reading: AdapterReading = InProcessReading(roots, base)
    if is_bounded:
        reading = BoundedReading(config.adapter_load_timeout_s, roots, base)
    return RowStore(config.adapter_cache, layout, capacity_bytes=config.adapter_cache_bytes, reading=reading, base=base)


def base_weights(config: EngineConfig) -> BaseWeights:
    """The base model's weights, for adapters that are worked out with them. Raises ModelError."""
    return BaseWeights(Path(config.model), load_config(config.model).tie_word_embeddings)


def arena_pages(config: EngineConfig, layout: ArenaLayout, device: torch.device) -> int:
    """Pages of the arena: ``memory_bytes``, what ``gpu_memory_utilization`` leaves, or half of what is free.

    It is asked when the weights are loaded. Ranks share ``memory_bytes`` equally, and on the CPU what is free too.
    """
    num_ranks = 1 if layout.shard is None else layout.shard.world_size
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    else:
        free_bytes, total_bytes = free_memory_bytes() // num_ranks, total_memory_bytes() // num_ranks
    size_bytes = free_bytes // 2
    if config.memory_bytes is not None:
        size_bytes = config.memory_bytes // num_ranks
    elif config.gpu_memory_utilization is not None:
        size_bytes = free_bytes - int((1 - config.gpu_memory_utilization) * total_bytes)
        if size_bytes < 2 * layout.page_bytes:
            raise ConfigError(
                f"gpu_memory_utilization is {config.gpu_memory_utilization:g}; {format_size(total_bytes - free_bytes)} of "
                f"{format_size(total_bytes)} are in use already, which leaves no room for the arena: allow more, or give "
                "--memory"
            )
    each = "" if num_ranks == 1 else f" for each of {num_ranks} ranks"
    if size_bytes > free_bytes:
        raise ConfigError(f"memory is {format_size(size_bytes)}{each}; only {format_size(free_bytes)} are free")
    num_pages = size_bytes // layout.page_bytes
    if num_pages < 2:
        raise ConfigError(
            f"memory is {format_size(size_bytes)}{each}; two pages of {format_size(layout.page_bytes)} are the least"
        )
    return num_pages


def context_length(config: EngineConfig, model: ModelConfig, layout: ArenaLayout, num_pages: int) -> int:
    """Longest sequence: what the model supports, or less if the arena is smaller. Raises ConfigError if asked for more."""
    supported = model.context_length(config.max_model_len)
    held = (num_pages - 1) * layout.page_tokens
    if config.max_model_len is not None and supported > held:
        raise ConfigError(
            f"max_model_len is {supported}; the arena of {num_pages} pages holds one sequence of {held} tokens: "
            "give it more memory, or ask for less"
        )
    if supported > held:
        log.warning("the arena holds one sequence of %d tokens; the context is cut from %d to that", held, supported)
    return min(supported, held)


__all__ = ["BuiltWorker", "arena_pages", "base_weights", "build_worker", "context_length", "row_store"]
