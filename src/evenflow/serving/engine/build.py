"""From an EngineConfig to a warm engine: the one place where floors are put together."""

from __future__ import annotations

import logging
import time

import torch

from evenflow.base.errors import ConfigError
from evenflow.base.memory_size import format_size, free_memory_bytes
from evenflow.base.openmp import start_numba_threads
from evenflow.fairness.queue import ClientQueues
from evenflow.fairness.registry import create_policy
from evenflow.serving.backends.choose import ATTENTION_BACKENDS, LORA_BACKENDS, BackendNames, choose
from evenflow.serving.backends.storage import Storage
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.engine.config import EngineConfig
from evenflow.serving.engine.engine import Engine
from evenflow.serving.engine.executor import LocalExecutor
from evenflow.serving.engine.live_shares import LiveShares
from evenflow.serving.engine.sampler import Sampler
from evenflow.serving.engine.text import Tokenizer
from evenflow.serving.engine.worker import Worker
from evenflow.serving.lora.catalog import Catalog
from evenflow.serving.lora.store import RowStore
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.memory.prefix_cache import PrefixCache
from evenflow.serving.memory.residency import Residency
from evenflow.serving.models.config import ModelConfig, load_config
from evenflow.serving.models.load import load_model, resolve_dtype
from evenflow.serving.models.rope_table import rope_table
from evenflow.serving.scheduler.limits import SchedulerLimits
from evenflow.serving.scheduler.scheduler import Scheduler

log = logging.getLogger("evenflow.engine")


def build_engine(config: EngineConfig) -> Engine:
    """Load the model, lay out the arena, compile the kernels. Raises ModelError or ConfigError."""
    started_s = time.perf_counter()
    start_numba_threads()
    model_config = load_config(config.model)
    tokenizer = Tokenizer.from_folder(config.model)
    eos_token_ids = end_tokens(model_config, tokenizer)
    queues = ClientQueues()
    shares = LiveShares(dict(config.weight_by_client), dict(config.tier_by_client), dict(config.weight_by_tier))
    policy = create_policy(
        config.policy,
        queues=queues,
        weights=shares.weight_by_client,
        seed=config.seed,
        tier_by_client=shares.tier_by_client,
        weight_by_tier=shares.weight_by_tier,
    )
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    model = load_model(config.model, model_config, dtype, device)
    layout = ArenaLayout(model_config.shape, dtype.itemsize, config.page_tokens)
    num_pages = arena_pages(config, layout, device)
    max_model_len = context_length(config, model_config, layout, num_pages)
    storage = Storage(layout, num_pages, dtype, device)
    cos_PD, sin_PD = rope_table(model_config.rope, model_config.shape.head_dim, max_model_len)
    names = (
        choose(device, dtype, model_config.shape) if config.kernels == "auto" else BackendNames(config.kernels, config.kernels)
    )
    sm_scale = model_config.shape.head_dim**-0.5
    attention = ATTENTION_BACKENDS.load(names.attention)(storage, cos_PD, sin_PD, sm_scale)
    lora = LORA_BACKENDS.load(names.lora)(storage)
    arena = Arena(num_pages)

    def forget(digest: AdapterDigest) -> None:
        residency.forget(digest)
        if prefix_cache is not None:
            prefix_cache.forget(digest)

    cache = config.adapter_cache
    store = None if cache is None else RowStore(cache, layout, capacity_bytes=config.adapter_cache_bytes)
    catalog = Catalog(layout, max_rank=config.max_lora_rank, on_freed=forget, store=store)
    residency = Residency(arena, catalog.record)
    prefix_cache = PrefixCache(arena, residency.idle_pages, layout.page_tokens) if config.enable_prefix_caching else None
    worker = Worker(model, storage, attention, lora, Sampler(eos_token_ids), catalog.host_rows)
    worker.warm_up(min(config.max_batch_tokens, max_model_len), config.max_num_seqs)
    limits = SchedulerLimits(
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens,
        max_model_len=max_model_len,
        page_tokens=layout.page_tokens,
    )
    scheduler = Scheduler(
        policy=policy, queues=queues, arena=arena, residency=residency, limits=limits, prefix_cache=prefix_cache
    )
    log.info(
        "%s in %s on %s, %s kernels; arena %s: %d pages of %d tokens; context %d; policy %s; ready after %.1f s",
        config.model.name,
        str(dtype).removeprefix("torch."),
        device,
        names.attention,
        format_size(num_pages * layout.page_bytes),
        num_pages,
        layout.page_tokens,
        max_model_len,
        config.policy,
        time.perf_counter() - started_s,
    )
    return Engine(
        config=config,
        scheduler=scheduler,
        residency=residency,
        catalog=catalog,
        executor=LocalExecutor(worker),
        tokenizer=tokenizer,
        shares=shares,
        eos_token_ids=eos_token_ids,
        vocab_size=model_config.shape.vocab_size,
        dtype=str(dtype).removeprefix("torch."),
        page_bytes=layout.page_bytes,
    )


def end_tokens(model: ModelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer: what the model folder names, and the tokenizer's own (chat models' configs often omit it)."""
    eos_token = tokenizer.special_tokens.get("eos_token")
    eos_token_id = None if eos_token is None else tokenizer.token_id(eos_token)
    named = (*model.eos_token_ids, *(() if eos_token_id is None else (eos_token_id,)))
    return tuple(dict.fromkeys(token_id for token_id in named if token_id < model.shape.vocab_size))


def resolve_device(name: str) -> torch.device:
    """``auto``: the first CUDA device if there is one, else the CPU. Raises ConfigError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r}; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def arena_pages(config: EngineConfig, layout: ArenaLayout, device: torch.device) -> int:
    """Pages of the arena: ``memory_bytes``, or half of what is free now that the weights are loaded."""
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()
    size_bytes = config.memory_bytes or free_bytes // 2
    if size_bytes > free_bytes:
        raise ConfigError(f"memory is {format_size(size_bytes)}; only {format_size(free_bytes)} are free")
    num_pages = size_bytes // layout.page_bytes
    if num_pages < 2:
        raise ConfigError(f"memory is {format_size(size_bytes)}; two pages of {format_size(layout.page_bytes)} are the least")
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
