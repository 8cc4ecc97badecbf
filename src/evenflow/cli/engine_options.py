"""The command line's part that every command with an engine shares: flags in, EngineConfig out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.base.memory_size import parse_size
from evenflow.serving.config.engine_config import DTYPES, SHARDINGS, EngineConfig

_SHORT_COMPRESSORS = {"int8": "int8-g32", "int6": "int6-g32", "int4": "int4-g32", "fp8": "fp8-g128"}


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the engine's flags, with vLLM's spellings as aliases."""
    group = parser.add_argument_group("engine")
    group.add_argument("--dtype", default="auto", choices=DTYPES, help="auto: bfloat16 where the CPU is fast at it")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--memory", metavar="SIZE", help="arena for KV cache and adapters, e.g. 2GiB; default: half of the free memory"
    )
    group.add_argument("--max-num-seqs", type=int, default=16, metavar="N", help="requests that run at once (16)")
    group.add_argument(
        "--max-batch-tokens",
        "--max-num-batched-tokens",
        type=int,
        default=512,
        metavar="N",
        help="tokens computed in one step (512)",
    )
    group.add_argument("--max-model-len", type=int, metavar="N", help="longest prompt plus output; default: the model's own")
    group.add_argument("--max-lora-rank", type=int, default=512, metavar="R", help="adapters above it are refused (512)")
    group.add_argument("--page-tokens", "--block-size", type=int, default=16, metavar="N", help="tokens per KV page (16)")
    group.add_argument("--policy", default="vtc", metavar="NAME[:ARG]", help="who is served next: vtc, fcfs, ... (vtc)")
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep computed prefixes for requests that begin alike under the same adapter (on)",
    )
    group.add_argument(
        "--shed",
        default="predict",
        metavar="NAME[:ARG]",
        help="who is given up when their first token would come too late: none, paper[:GUARD_S], predict[:MARGIN] (predict)",
    )
    group.add_argument(
        "--slo-ttft",
        type=float,
        metavar="S",
        help="seconds within which a request's first token is wanted, unless it says so itself; default: none (paper: 6)",
    )
    group.add_argument("--kernels", default="auto", help="auto, cpu, torch, triton or flashinfer")
    group.add_argument("--threads", type=int, metavar="N", help="compute threads of all ranks; default: the usable cores")
    group.add_argument("--cache-dir", type=Path, metavar="DIR", help="where compiled kernels are kept between starts")
    group.add_argument("--adapter-cache", type=Path, metavar="DIR", help="where converted adapters are kept between starts")
    group.add_argument(
        "--adapter-cache-size",
        metavar="SIZE",
        help="its largest size; default: 64GiB, or half of what the disk has left. Adapters of --adapter-dir make room for "
        "each other, the longest unused first; registered ones stay",
    )
    group.add_argument(
        "--adapter-eviction", default="lru", metavar="NAME", help="which idle adapter leaves first: lru, cost-aware (lru)"
    )
    group.add_argument(
        "--adapter-prefetch",
        default="16MiB",
        metavar="SIZE",
        help="adapter weights copied beside one step for requests that wait (16MiB); 0: none",
    )
    group.add_argument(
        "--watchdog",
        type=float,
        default=30.0,
        metavar="S",
        help="an engine or a rank without a sign of life for so long is ended with its reason (30); 0: never",
    )
    group.add_argument("--seed", type=int, default=0, help="for requests without a seed (0)")
    group.add_argument(
        "--tensor-parallel",
        "--tensor-parallel-size",
        "-tp",
        type=int,
        default=1,
        metavar="N",
        help="ranks that share a layer (1)",
    )
    group.add_argument(
        "--lora-sharding",
        default="auto",
        choices=SHARDINGS,
        help="divide adapters over the ranks, repeat them, or whichever moves fewer bytes (auto)",
    )
    group.add_argument(
        "--compress",
        default="none",
        metavar="SPEC[/TRANSPORT]",
        help="compress the sums between ranks: int8, int4, fp8, bf16 or any of evenflow mcbench list (none)",
    )


def engine_config(args: argparse.Namespace, model: Path, weight_by_client: dict[str, float] | None = None) -> EngineConfig:
    """EngineConfig from parsed flags. Raises ConfigError."""
    return EngineConfig(
        model=model,
        dtype=args.dtype,
        device=args.device,
        memory_bytes=None if args.memory is None else parse_size(args.memory),
        max_num_seqs=args.max_num_seqs,
        max_batch_tokens=args.max_batch_tokens,
        max_model_len=args.max_model_len,
        max_lora_rank=args.max_lora_rank,
        page_tokens=args.page_tokens,
        policy=args.policy,
        enable_prefix_caching=args.enable_prefix_caching,
        shed=args.shed,
        slo_ttft_s=args.slo_ttft,
        kernels=args.kernels,
        num_threads=args.threads,
        tensor_parallel=args.tensor_parallel,
        lora_sharding=args.lora_sharding,
        compress=_SHORT_COMPRESSORS.get(args.compress, args.compress),
        cache_dir=args.cache_dir,
        adapter_cache=args.adapter_cache,
        adapter_cache_bytes=None if args.adapter_cache_size is None else parse_size(args.adapter_cache_size),
        adapter_eviction=args.adapter_eviction,
        adapter_prefetch_bytes=0 if args.adapter_prefetch.strip() == "0" else parse_size(args.adapter_prefetch),
        seed=args.seed,
        log_level=args.log_level,
        watchdog_s=args.watchdog,
        weight_by_client=weight_by_client or {},
    )


def parse_adapters(specs: Sequence[str]) -> dict[str, Path]:
    """Adapters from "name=folder" or vLLM's JSON {"name": ..., "path": ...}. Raises ConfigError."""
    adapters: dict[str, Path] = {}
    for spec in specs:
        if spec.lstrip().startswith("{"):
            try:
                entry = json.loads(spec)
                name, path = entry["name"], entry["path"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f'adapter {spec!r} is not {{"name": NAME, "path": DIR}}: {error}') from None
        else:
            name, separator, path = spec.partition("=")
            if not (separator and name and path):
                raise ConfigError(f"adapter {spec!r} is not understood; write NAME=DIR")
        if name in adapters:
            raise ConfigError(f"adapter name {name!r} is given twice")
        adapters[name] = Path(path)
    return adapters
