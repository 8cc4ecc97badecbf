"""What an engine is told when it is made: a frozen dataclass of options, read and checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.base.logs import LOG_FORMATS
from evenflow.fairness.books.weights import check_tiers, weight_lookup
from evenflow.fairness.registry import DEFAULT_POLICY
from evenflow.serving.config.kinds import Choice, Count, Names, Number, PathTo, Size, Switch, Table, Text
from evenflow.serving.config.option import option, read_options
from evenflow.serving.memory.eviction import EVICTION_ORDERS
from evenflow.serving.quant.schemes import QUANTIZATIONS
from evenflow.serving.scheduler.shedding import create_shedding

QUANTIZATION_NAMES = ("none", *QUANTIZATIONS)
DTYPES = ("auto", "bfloat16", "float32")
MAX_BATCH_TOKENS = 512
SHARDINGS = ("auto", "sharded", "replicated")
LOG_LEVELS = ("debug", "info", "warning", "error")
_SHORT_COMPRESSORS = {"int8": "int8-g32", "int6": "int6-g32", "int4": "int4-g32", "fp8": "fp8-g128"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine. Raises ConfigError, naming the option, for a value outside its range."""

    model: Path = option(
        PathTo("MODEL_DIR"),
        help="Hugging Face folder of the base model: config.json, safetensors, tokenizer.json.",
    )
    tokenizer: Path | None = option(
        PathTo(), None, "Folder with another tokenizer.json, and chat template, for the model.", when_none="the model's folder"
    )
    dtype: str = option(
        Choice(DTYPES, {"half": "auto", "float16": "auto", "float": "float32"}),
        "auto",
        "Type of the numbers that the model computes with.",
        reason="auto is bfloat16 where the device is fast at it, else float32; float16 is read as auto, because no kernel "
        "computes in it.",
    )
    quantization: str = option(
        Choice(QUANTIZATION_NAMES, {"None": "none"}),
        "none",
        "Bits of the weights: int8 and int4 quantise a model when it is loaded, on the CPU; adapters stay exact.",
        reason="Half and a third of the memory, and a batch of few tokens is as much faster. What was made is kept beside the "
        "adapter cache. A folder that is quantised already says so itself.",
        short="-q",
    )
    device: str = option(Text("auto, cpu, cuda or cuda:N", "DEVICE"), "auto", "Where the model is computed.")
    memory_bytes: int | None = option(
        Size(),
        None,
        "Size of the arena that KV cache and adapters share, of all ranks together.",
        name="memory",
        when_none="half of what is free once the weights are loaded",
        aliases=("kv_cache_memory_bytes",),
    )
    gpu_memory_utilization: float | None = option(
        Number(above=0, most=1),
        None,
        "Share of the device's memory, or of the machine's for a CPU, that may be in use once the arena stands; instead of "
        "--memory.",
        when_none="--memory says it",
        reason="What others use counts too, so two servers of 0.5 each fit one device.",
        aliases=("device_memory_utilization",),
    )
    page_tokens: int = option(
        Count(16),
        16,
        "Tokens per KV page, a power of two.",
        reason="It grows by itself if a LoRA row would not fit into a page.",
        aliases=("block_size",),
    )
    max_num_seqs: int = option(
        Count(1, 4096),
        16,
        "Requests that run at once.",
        reason="More fill the matrix units better and give each client less.",
    )
    max_batch_tokens: int = option(
        Count(1),
        None,
        "Tokens computed in one step; at least max_num_seqs.",
        reason="It bounds how long a prompt can hold up everybody's next token.",
        when_none=f"{MAX_BATCH_TOKENS}, or max_num_seqs if that is more",
        aliases=("max_num_batched_tokens",),
    )
    max_model_len: int | None = option(
        Count(2, unit="tokens", none_words=("auto", "-1")),
        None,
        "Longest prompt plus output.",
        when_none="what the model was trained for, if the arena holds it",
    )
    policy: str = option(
        Text("[MODIFIER+]NAME[:ARG] from the fairness registry", "NAME[:ARG]"),
        DEFAULT_POLICY,
        "Who is served next: fair, vtc, fcfs, hierarchy, ...; `evenflow replay --help` lists them.",
    )
    shed: str = option(
        Text("none, paper[:GUARD_S] or predict[:MARGIN]", "NAME[:ARG]"),
        "predict",
        "Which waiting requests are given up when their first token would come too late: none, paper[:GUARD_S] or "
        "predict[:MARGIN].",
    )
    slo_ttft_s: float | None = option(
        Number(unit="seconds", metavar="S"),
        None,
        "Within which the first token of a request is wanted that does not say so itself.",
        name="slo_ttft",
        when_none="no objective (with --shed paper: 6)",
    )
    max_lora_rank: int = option(Count(1), 512, "Adapters of a higher rank are refused.")
    max_adapters: int = option(Count(1), 100_000, "Adapters registered at once; beyond it loading is refused.")
    adapter_cache: Path | None = option(
        PathTo(),
        None,
        "Folder where converted adapters are kept between starts.",
        when_none="in the user's cache folder; for an engine inside the caller's process: memory",
    )
    adapter_cache_bytes: int | None = option(
        Size(),
        None,
        "Largest size of that folder.",
        name="adapter_cache_size",
        reason="Adapters of --adapter-dir make room for each other, the longest unused first; registered ones stay.",
        when_none="64GiB, or half of what its disk has left, if that is less",
    )
    adapter_load_timeout_s: float = option(
        Number(above=0, unit="seconds", metavar="S"),
        10.0,
        "Reading one adapter's folder may take so long, and a second more for each 50 MB; then it is ended and refused.",
        name="adapter_load_timeout",
    )
    adapter_roots: tuple[str, ...] = option(
        Names(metavar="DIR", allowed="one folder or more"),
        (),
        "Folders where links inside any adapter's folder may lead, beside its own, its hub cache's blobs and its first "
        "sub-folder of --adapter-dir.",
    )
    enable_prefix_caching: bool = option(
        Switch(),
        True,
        "Keep the pages of computed prefixes for requests that begin alike under the same adapter.",
    )
    adapter_eviction: str = option(
        Text("lru or cost-aware"),
        "lru",
        "Which idle adapter leaves the arena first: lru, or cost-aware (recency, popularity, bytes to load again).",
    )
    adapter_prefetch_bytes: int = option(
        Size(may_be_zero=True),
        16 << 20,
        "Adapter weights copied beside one step for requests that wait; 0: none, adapters are loaded when a request starts.",
        name="adapter_prefetch",
        reason="The default is about what a step hides.",
    )
    kernels: str = option(
        Text("auto, cpu, torch, triton or flashinfer"),
        "auto",
        "Which kernels compute attention and LoRA: auto, cpu (numba), torch, triton, flashinfer (with Triton's LoRA).",
    )
    enforce_eager: bool = option(Switch(), False, "Never record decode steps as CUDA graphs; without meaning on other devices.")
    num_threads: int | None = option(
        Count(1),
        None,
        "Compute threads of all ranks together.",
        name="threads",
        when_none="the cores this process may use",
    )
    tensor_parallel: int = option(
        Count(1, 256),
        1,
        "Ranks that share each layer, each a process.",
        reason="Heads and the MLP's inner width are divided by it.",
        aliases=("tensor_parallel_size",),
        short="-tp",
    )
    lora_sharding: str = option(
        Choice(SHARDINGS),
        "auto",
        "Adapters divided over the ranks (sharded, with messages in rank space), repeated (replicated), or whichever moves "
        "fewer bytes.",
    )
    compress: str = option(
        Text("none or SPEC[/TRANSPORT] of evenflow.comm", "SPEC[/TRANSPORT]", _SHORT_COMPRESSORS),
        "none",
        "How the sums between ranks are compressed: int8, int6, int4, fp8, bf16 or any of `evenflow mcbench list`.",
    )
    cache_dir: Path | None = option(
        PathTo(), None, "Folder where compiled kernels are kept between starts.", when_none="in the user's cache folder"
    )
    seed: int = option(Count(-(1 << 63), (1 << 63) - 1), 0, "Seeds requests that bring no seed of their own.")
    weight_by_client: Mapping[str, float] = option(
        Table(),
        default_factory=dict,
        help="Share weights of clients that differ from 1, without their tier's. A server takes them from clients.toml.",
        aliases=("weights",),
        has_flag=False,
    )
    tier_by_client: Mapping[str, str] = option(
        Table(),
        default_factory=dict,
        help="Tiers of clients. Under `hierarchy` tiers share first; other policies multiply a client's weight by its tier's. "
        "A server takes them from clients.toml.",
        has_flag=False,
    )
    weight_by_tier: Mapping[str, float] = option(
        Table(), default_factory=dict, help="Share weights of tiers. A server takes them from clients.toml.", has_flag=False
    )
    log_level: str = option(
        Choice(LOG_LEVELS, {"trace": "debug", "critical": "error"}),
        "warning",
        "What is written to standard error; `evenflow serve` writes info too if it is not told.",
        aliases=("uvicorn_log_level",),
    )
    log_format: str = option(
        Choice(LOG_FORMATS),
        "text",
        "How lines on standard error look: text for people, or json, one object a line, for programs.",
    )
    stats_interval_s: float = option(
        Number(above=0, unit="seconds", metavar="S"),
        0.25,
        "How often a snapshot of the engine's figures goes to the server.",
        name="stats_interval",
    )
    watchdog_s: float = option(
        Number(least=0, unit="seconds", metavar="S"),
        30.0,
        "An engine or a rank without a sign of life for so long, or whose step stands still, is ended with its reason; "
        "0: never. A step that uses the processor, and the start, may take ten times as long. "
        "From half of it on /health says 503.",
        name="watchdog",
    )

    def __post_init__(self) -> None:
        read_options(self)
        if self.max_batch_tokens is None:
            object.__setattr__(self, "max_batch_tokens", max(MAX_BATCH_TOKENS, self.max_num_seqs))

        def check(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")

        check(self.device in ("auto", "cpu", "cuda") or self.device.startswith("cuda:"), "device", "auto, cpu, cuda or cuda:N")
        check(
            self.memory_bytes is None or self.gpu_memory_utilization is None,
            "gpu_memory_utilization",
            "only without memory, which says the same",
        )
        check(self.page_tokens & (self.page_tokens - 1) == 0, "page_tokens", "a power of two, 16 or more")
        check(
            self.max_batch_tokens >= self.max_num_seqs,
            "max_batch_tokens",
            f"at least max_num_seqs ({self.max_num_seqs}), so that every running request can take a step",
        )
        check(self.adapter_eviction in EVICTION_ORDERS, "adapter_eviction", ", ".join(EVICTION_ORDERS))
        check(self.watchdog_s == 0 or self.watchdog_s >= 2, "watchdog_s", "0, or 2 seconds or more")
        weight_lookup(self.weight_by_client)
        create_shedding(self.shed, self.slo_ttft_s)
        check_tiers(self.tier_by_client, self.weight_by_tier)

    @property
    def text_folder(self) -> Path:
        """Folder of the tokenizer and its chat template."""
        return self.tokenizer if self.tokenizer is not None else self.model
