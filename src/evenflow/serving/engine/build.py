"""From an EngineConfig to a warm engine: the one place where floors are put together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from evenflow.base.memory_size import format_size
from evenflow.base.openmp import start_numba_threads
from evenflow.base.progress import Tell, tell_nobody
from evenflow.fairness.books.live_shares import LiveShares
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.registry import create_policy, without_secrets
from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.engine.constraints import Constraints
from evenflow.serving.engine.engine import Engine
from evenflow.serving.grammar.compiler import GrammarCompiler
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.eviction import EVICTION_ORDERS
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.memory.prefix_cache import PrefixCache
from evenflow.serving.memory.residency import Residency
from evenflow.serving.models.model_config import ModelConfig, load_config
from evenflow.serving.ranks.all_ranks import AllRanksCatalog, AllRanksExecutor
from evenflow.serving.ranks.rank_processes import RankProcesses
from evenflow.serving.runner.build_worker import base_weights, build_worker, row_store
from evenflow.serving.runner.executor import LocalExecutor
from evenflow.serving.runner.membership import Membership, alone, check_parallel, join
from evenflow.serving.runner.sampler import Sampler
from evenflow.serving.scheduler.limits import SchedulerLimits
from evenflow.serving.scheduler.prefetch import prefetch_within
from evenflow.serving.scheduler.scheduler import Scheduler
from evenflow.serving.scheduler.shedding import create_shedding
from evenflow.serving.text import Tokenizer

log = logging.getLogger("evenflow.engine")


def build_engine(config: EngineConfig, folder: Path | None = None, tell: Tell = tell_nobody) -> Engine:
    """Load the model, lay out the arena, compile the kernels; start the other ranks, if there are any.

    ``folder``: of the engine process, see RankProcesses; adapters are then read in a process of their own. ``tell``: hears
    how far it has come. Raises ModelError or ConfigError, and what a rank failed of.
    """
    started_s = time.perf_counter()
    start_numba_threads()
    model_config = load_config(config.model)
    check_parallel(config, model_config)
    if config.tensor_parallel == 1:
        return _assemble(config, model_config, None, started_s, tell, is_bounded=folder is not None)
    ranks = RankProcesses(config, folder)
    try:
        with ranks.explained():
            return _assemble(config, model_config, ranks, started_s, tell, is_bounded=folder is not None)
    except BaseException:
        ranks.close()
        raise


def _assemble(
    config: EngineConfig,
    model_config: ModelConfig,
    ranks: RankProcesses | None,
    started_s: float,
    tell: Tell,
    *,
    is_bounded: bool,
) -> Engine:
    """All of rank 0, in step with the other ranks."""
    tokenizer = Tokenizer.from_folder(config.text_folder)
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
    membership = alone(config) if ranks is None else _meet(config, model_config, ranks)
    built = build_worker(
        config, model_config, membership, Sampler(eos_token_ids), lambda digest: catalog.host_rows(digest), tell
    )
    layout, num_pages, max_model_len = built.layout, built.num_pages, built.max_model_len
    arena = Arena(num_pages)

    def forget(digest: AdapterDigest) -> None:
        residency.forget(digest)
        if prefix_cache is not None:
            prefix_cache.forget(digest)

    catalog = _catalog(config, layout, ranks, on_freed=forget, is_bounded=is_bounded)
    residency = Residency(arena, catalog.record, order=EVICTION_ORDERS.load(config.adapter_eviction)())
    window = model_config.kept_window(max_model_len)
    prefix_cache = None
    if config.enable_prefix_caching:
        prefix_cache = PrefixCache(arena, residency.idle_pages, layout.page_tokens, window)
    limits = SchedulerLimits(
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens,
        max_model_len=max_model_len,
        page_tokens=layout.page_tokens,
        window=window,
    )
    shedding = create_shedding(config.shed, config.slo_ttft_s)
    scheduler = Scheduler(
        policy=policy,
        queues=queues,
        arena=arena,
        residency=residency,
        limits=limits,
        prefix_cache=prefix_cache,
        shedding=shedding,
        prefetch=prefetch_within(config.adapter_prefetch_bytes, layout, num_pages),
    )
    log.info(
        "%s in %s on %s x %d, %s kernels; arena %s: %d pages of %d tokens; context %d%s; policy %s; ready after %.1f s",
        config.model.name,
        str(membership.dtype).removeprefix("torch."),
        membership.device.type,
        config.tensor_parallel,
        built.names.attention,
        format_size(config.tensor_parallel * num_pages * layout.page_bytes),
        num_pages,
        layout.page_tokens,
        max_model_len,
        "" if window is None else f", of which {window} are kept",
        without_secrets(config.policy),
        time.perf_counter() - started_s,
    )
    return Engine(
        config=config,
        scheduler=scheduler,
        residency=residency,
        catalog=catalog,
        executor=LocalExecutor(built.worker) if ranks is None else AllRanksExecutor(built.worker, ranks, membership),
        tokenizer=tokenizer,
        shares=shares,
        eos_token_ids=eos_token_ids,
        vocab_size=model_config.shape.vocab_size,
        dtype=str(membership.dtype).removeprefix("torch."),
        page_bytes=layout.page_bytes,
        constraints=Constraints(partial(GrammarCompiler, tokenizer.json_text(), model_config.shape.vocab_size, eos_token_ids)),
        ledger=membership.ledger,
    )


def _meet(config: EngineConfig, model_config: ModelConfig, ranks: RankProcesses) -> Membership:
    ranks.wait_until_started()
    return join(config, model_config, 0, ranks.folder)


def _catalog(
    config: EngineConfig,
    layout: ArenaLayout,
    ranks: RankProcesses | None,
    on_freed: Callable[[AdapterDigest], object],
    is_bounded: bool,
) -> Catalog:
    store, base = row_store(config, layout, is_bounded=is_bounded), base_weights(config)
    if ranks is None:
        return Catalog(layout, max_lora_rank=config.max_lora_rank, on_freed=on_freed, store=store, base=base)
    return AllRanksCatalog(layout, ranks, max_lora_rank=config.max_lora_rank, on_freed=on_freed, store=store, base=base)


def end_tokens(model: ModelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer: what the model folder names, and the tokenizer's own (chat models' configs often omit it)."""
    eos_token = tokenizer.special_tokens.get("eos_token")
    eos_token_id = None if eos_token is None else tokenizer.token_id(eos_token)
    named = (*model.eos_token_ids, *(() if eos_token_id is None else (eos_token_id,)))
    return tuple(dict.fromkeys(token_id for token_id in named if token_id < model.shape.vocab_size))
