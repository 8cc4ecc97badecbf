"""What an engine is told when it is made: a frozen tree, validated here, each field with unit and reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.fairness.books.weights import check_tiers, weight_lookup
from evenflow.serving.memory.eviction import EVICTION_ORDERS
from evenflow.serving.scheduler.shedding import create_shedding

DTYPES = ("auto", "bfloat16", "float32")
DEVICES = ("auto", "cpu", "cuda")
SHARDINGS = ("auto", "sharded", "replicated")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine. Raises ConfigError, naming the field, for a value outside its range."""

    model: Path
    """Folder with config.json, safetensors and tokenizer.json."""
    dtype: str = "auto"
    """auto: bfloat16 where the device is fast at it, else float32."""
    device: str = "auto"
    memory_bytes: int | None = None
    """Size of the arena for KV cache and adapters, of all ranks; None: half of what is free once the weights are loaded."""
    page_tokens: int = 16
    """Tokens per KV page; grows by itself if a LoRA row would not fit."""
    max_num_seqs: int = 16
    """Requests that run at once: more fill the matrix units better and give each client less."""
    max_batch_tokens: int = 512
    """Rows computed in one step: bounds how long a prompt can hold up everybody's next token."""
    max_model_len: int | None = None
    """Longest prompt plus output in tokens; None: what the model was trained for, if the arena holds it."""
    policy: str = "vtc"
    """[MODIFIER+]NAME[:ARG] from the fairness registry."""
    shed: str = "predict"
    """none, paper[:GUARD_S] or predict[:MARGIN]: which waiting requests are given up. See scheduler/shedding.py."""
    slo_ttft_s: float | None = None
    """Objective for the time to first token of requests that bring none; None: paper's 6 s, and with predict no objective."""
    max_lora_rank: int = 512
    """Adapters of a higher rank are refused."""
    max_adapters: int = 100_000
    """Registered at once; beyond it loading is refused."""
    adapter_cache: Path | None = None
    """Folder of converted adapters. None: in the user's cache folder; for an engine inside the caller's process: memory."""
    adapter_cache_bytes: int | None = None
    """Largest size of that folder; None: 64 GiB, or half of what its disk has left, if that is less."""
    enable_prefix_caching: bool = True
    """Keep the pages of computed prefixes for requests that begin alike under the same adapter."""
    adapter_eviction: str = "lru"
    """Which idle adapter leaves the arena first: lru, or cost-aware (recency, popularity, reload bytes)."""
    adapter_prefetch_bytes: int = 16 << 20
    """Copied beside one step for requests that wait: about what a step hides. 0: adapters are loaded when a request starts."""
    kernels: str = "auto"
    """auto, cpu (numba), torch, triton, flashinfer (with Triton's LoRA): see backends."""
    num_threads: int | None = None
    """Compute threads of all ranks together; None: the cores this process may use."""
    tensor_parallel: int = 1
    """Ranks that share each layer, each a process: heads and the MLP's inner width are divided by it."""
    lora_sharding: str = "auto"
    """Adapters divided over the ranks (sharded, with messages in rank space), repeated (replicated), or what costs less."""
    compress: str = "none"
    """Compressor of the sums between ranks, SPEC[/TRANSPORT] of evenflow.comm."""
    cache_dir: Path | None = None
    """Where compiled kernels are kept between starts; None: the user's cache folder."""
    seed: int = 0
    """Seeds requests that bring no seed of their own."""
    weight_by_client: Mapping[str, float] = field(default_factory=dict)
    """Share weights of clients that differ from 1, without their tier's."""
    tier_by_client: Mapping[str, str] = field(default_factory=dict)
    """Under ``hierarchy`` tiers share first; other policies multiply a client's weight by its tier's."""
    weight_by_tier: Mapping[str, float] = field(default_factory=dict)
    log_level: str = "warning"
    """What the engine process writes to stderr: debug, info, warning or error."""
    stats_interval_s: float = 0.25
    """How often a snapshot goes to the server."""
    watchdog_s: float = 30.0
    """An engine or a rank without a sign of life for so long, or whose step stands still, is ended with its reason; 0: never.

    A step that uses the processor, and the start, may take ten times as long. From half of it on /health says 503.
    """

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")

        object.__setattr__(self, "model", Path(self.model))
        for folder in ("cache_dir", "adapter_cache"):
            if getattr(self, folder) is not None:
                object.__setattr__(self, folder, Path(getattr(self, folder)))
        check(self.dtype in DTYPES, "dtype", ", ".join(DTYPES))
        check(self.device in DEVICES or self.device.startswith("cuda:"), "device", "auto, cpu, cuda or cuda:N")
        check(self.memory_bytes is None or self.memory_bytes > 0, "memory_bytes", "above 0")
        check(
            self.page_tokens >= 16 and self.page_tokens & (self.page_tokens - 1) == 0,
            "page_tokens",
            "a power of two, 16 or more",
        )
        check(1 <= self.max_num_seqs <= 4096, "max_num_seqs", "1 to 4096")
        check(self.max_batch_tokens >= 1, "max_batch_tokens", "1 or more")
        check(
            self.max_batch_tokens >= self.max_num_seqs,
            "max_batch_tokens",
            f"at least max_num_seqs ({self.max_num_seqs}), so that every running request can take a step",
        )
        check(self.max_model_len is None or self.max_model_len >= 2, "max_model_len", "2 or more")
        check(self.max_lora_rank >= 1, "max_lora_rank", "1 or more")
        check(self.adapter_eviction in EVICTION_ORDERS, "adapter_eviction", ", ".join(EVICTION_ORDERS))
        check(self.adapter_prefetch_bytes >= 0, "adapter_prefetch_bytes", "0 or more")
        check(self.adapter_cache_bytes is None or self.adapter_cache_bytes > 0, "adapter_cache_bytes", "above 0")
        check(1 <= self.tensor_parallel <= 256, "tensor_parallel", "1 to 256")
        check(self.lora_sharding in SHARDINGS, "lora_sharding", ", ".join(SHARDINGS))
        check(self.watchdog_s == 0 or self.watchdog_s >= 2, "watchdog_s", "0, or 2 seconds or more")
        check(self.num_threads is None or self.num_threads >= 1, "num_threads", "1 or more")
        weight_lookup(self.weight_by_client)
        create_shedding(self.shed, self.slo_ttft_s)
        check_tiers(self.tier_by_client, self.weight_by_tier)
