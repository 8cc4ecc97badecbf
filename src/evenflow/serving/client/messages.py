"""What crosses the border between a server (or ``LLM``) and the engine process, as msgpack.

One message per step each way, never one per token. Nothing here imports torch or fastapi.
"""

from __future__ import annotations

import copy

import msgspec

from evenflow.serving.core.sampling import SamplingParams


class Submit(msgspec.Struct, tag=True, array_like=True):
    """Start one request. ``adapter`` is a *name*; the engine resolves it to a digest when it arrives."""

    request_id: str
    client_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    adapter: str | None = None
    arrival_s: float = 0.0
    """time.monotonic() of the machine when the server received it."""
    cache_salt: str = ""
    """Only requests with the same salt share cached prefixes."""
    slo_ttft_s: float | None = None
    """The request's own objective for its time to first token; None: the engine's default."""
    added_tokens: list[tuple[int, str, bool]] = []
    """Tokens that the adapter knows and the base model's tokenizer lacks: id, text, whether special."""
    traceparent: str = ""
    """W3C's header of the trace that the request belongs to, for the log of whoever works on it; empty: of none."""


class SubmitAll(msgspec.Struct, tag=True, array_like=True):
    """Start several completions of one prompt: what they share crosses the border once."""

    first: Submit
    others: list[tuple[str, int | None]]
    """Request id and seed of each further one."""

    def submits(self) -> list[Submit]:
        """One by one; they share the prompt and everything else of the first."""
        return [self.first, *(self._other(request_id, seed) for request_id, seed in self.others)]

    def _other(self, request_id: str, seed: int | None) -> Submit:
        sampling = copy.copy(self.first.sampling)  # its values were checked with the first
        object.__setattr__(sampling, "seed", seed)
        return msgspec.structs.replace(self.first, request_id=request_id, sampling=sampling)


class Abort(msgspec.Struct, tag=True, array_like=True):
    """The client is gone: stop the requests. Of each that was known one output follows, which says what it took."""

    request_ids: list[str]


class LoadAdapter(msgspec.Struct, tag=True, array_like=True):
    """Read, check and register the PEFT adapter in folder ``path`` under ``name``."""

    call_id: int
    name: str
    path: str
    replace: bool = False
    """True: if the name is taken, new requests get the new weights and running ones keep the old."""
    must_read: bool = False
    """True: look at what the files hold, even if their sizes and times say that it is known."""
    boundary: str = ""
    """A folder inside which links of the adapter may lead, beside its own; empty: none."""
    parts: list[tuple[str, float]] = []
    """Names of registered adapters and their weights: register their sum, and read no folder."""
    client_id: str = ""
    """Who asks for it: loads of different clients take turns. Empty: the server itself."""


class UnloadAdapter(msgspec.Struct, tag=True, array_like=True):
    """Forget the name now; free host and arena memory when the last request that uses it ends."""

    call_id: int
    name: str
    purge: bool = False
    """True: its row file in the adapter cache is deleted too."""


class PinAdapter(msgspec.Struct, tag=True, array_like=True):
    """Keep (or no longer keep) a resident adapter from being evicted."""

    call_id: int
    name: str
    is_pinned: bool = True


class ListAdapters(msgspec.Struct, tag=True, array_like=True):
    """Ask for every registered adapter and those that still drain."""

    call_id: int


class SetWeights(msgspec.Struct, tag=True, array_like=True):
    """Own weights of clients that differ from 1, and tiers, replacing the earlier ones."""

    weight_by_client: dict[str, float]
    tier_by_client: dict[str, str] = {}
    weight_by_tier: dict[str, float] = {}


class Shutdown(msgspec.Struct, tag=True, array_like=True):
    """Abort what runs and end the process."""


class AdapterInfo(msgspec.Struct):
    """One adapter as a platform engineer wants to see it."""

    name: str
    digest: str
    lora_rank: int
    """The largest of any module."""
    size_bytes: int
    num_pages: int
    state: str
    """"disk" | "host" (its rows are open and read ahead) | "resident" | "draining" (unloaded or replaced, still used by
    running requests)."""
    is_pinned: bool
    in_flight: int
    """Requests, waiting or running, that use this digest."""
    target_modules: list[str]
    num_loads: int = 0
    """How often it was copied into the arena."""
    base_model: str = ""
    """What the adapter says it was trained for, as it says it; empty: nothing."""


class Answer(msgspec.Struct, tag=True, array_like=True):
    """Answer to a call. ``error_type`` is the class name in evenflow.base.errors, or None for success."""

    call_id: int
    adapters: list[AdapterInfo] = []
    error_type: str | None = None
    error: str = ""
    reasons: list[str] = []


class Logprobs(msgspec.Struct, array_like=True):
    """Log-probability of one token: its id, its text and the likeliest (id, text, logprob)."""

    token_id: int
    logprob: float
    token: str
    top: list[tuple[int, str, float]]
    """(token id, token text, logprob), best first."""
    token_rank: int = 0
    """Place of the token among all tokens of the vocabulary, 1 for the likeliest; 0: not computed."""
    bytes_by_id: dict[int, bytes] = {}
    """Bytes of those of these tokens that are no text by themselves: their texts hold U+FFFD."""


class Usage(msgspec.Struct):
    """What a request took."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    queue_s: float = 0.0
    """Arrival to first admission."""
    prefill_s: float = 0.0
    """Admission to first token."""
    decode_s: float = 0.0
    """First token to last token."""
    service: float = 0.0
    """What the policy charged, in its cost function's unit."""
    num_preemptions: int = 0
    adapter_load_at_s: float = 0.0
    """Arrival to the moment at which copying its adapter into the arena began, if ``adapter_load_s`` is not 0."""
    adapter_load_s: float = 0.0
    """How long that copying took; 0: the adapter was there, or none was needed."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


class RequestOutput(msgspec.Struct, array_like=True):
    """What one request gained in one step. The last one has ``finish_reason`` and ``usage``, or ``error_type``.

    The first one with a token has a ``usage`` too, of what went before it; its service is not told yet.
    """

    request_id: str
    text: str = ""
    token_ids: list[int] = []
    logprobs: list[Logprobs] = []
    prompt_logprobs: list[Logprobs | None] | None = None
    """On the first output, if asked for; entry 0 is None (nothing comes before the first token)."""
    finish_reason: str | None = None
    """"stop" | "length" | "abort" | "error"."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it."""
    usage: Usage | None = None
    error_type: str | None = None
    """Class name in evenflow.base.errors."""
    error: str = ""
    param: str | None = None
    retry_after_s: float = 0.0
    predicted_ttft_s: float = 0.0
    """With the error SLOUnreachable."""


class ClientStats(msgspec.Struct):
    """One client's account since the engine started."""

    num_waiting: int = 0
    num_running: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    service: float = 0.0
    virtual_counter: float | None = None
    """None: the policy keeps none, or has forgotten an idle client."""
    weight: float = 1.0
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; not among ``prompt_tokens``."""


class AdapterStats(msgspec.Struct):
    """One adapter's account (by digest) since the engine started."""

    name: str
    num_waiting: int = 0
    num_running: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_loads: int = 0
    is_resident: bool = False
    cached_tokens: int = 0


class WireStats(msgspec.Struct):
    """What rank 0 has sent to the other tensor-parallel ranks from one site, since the start."""

    exchanges: int
    planned_bytes: float
    sent_bytes: float


ITERATION_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper ends of the classes in which steps are counted by their tokens; above the last there is one more. vLLM's."""


class EngineStats(msgspec.Struct):
    """A snapshot for /metrics, limits and reports; sent a few times a second."""

    time_s: float = 0.0
    policy: str = ""
    num_running: int = 0
    num_waiting: int = 0
    num_waiting_by_reason: dict[str, int] = {}
    num_pages: int = 0
    num_free_pages: int = 0
    num_kv_pages: int = 0
    num_adapter_pages: int = 0
    num_idle_cache_pages: int = 0
    """Kept by the prefix cache, and used by nobody now."""
    page_tokens: int = 16
    num_preemptions: int = 0
    num_shed: int = 0
    """Requests given up because their first token would have come too late."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    recomputed_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    caches_prefixes: bool = False
    num_steps: int = 0
    step_s: float = 0.0
    """Median of the last steps."""
    num_steps_by_tokens: list[int] = []
    """Steps in each class of ITERATION_TOKENS, and above; empty: none yet."""
    num_step_tokens: int = 0
    """Tokens computed in all of them."""
    scheduling_s: float = 0.0
    """Total time spent planning and committing."""
    executing_s: float = 0.0
    """Total time spent in the executor."""
    tokens_per_s: float = 0.0
    """Output tokens per second over the last seconds of work."""
    prompt_tokens_per_s: float = 0.0
    num_adapters: int = 0
    num_resident_adapters: int = 0
    num_adapter_loads: int = 0
    num_adapter_evictions: int = 0
    num_host_adapters: int = 0
    """Not in the arena, but their rows are open and read ahead; those in neither place are on the disk only."""
    num_pinned_adapters: int = 0
    adapter_bytes: int = 0
    """Rows of all adapters, on the disk."""
    host_adapter_bytes: int = 0
    """Of those, open and read ahead."""
    num_adapter_prefetches: int = 0
    num_wasted_prefetches: int = 0
    """Prefetched adapters that were evicted before anybody used them."""
    loaded_adapter_bytes: int = 0
    num_failed_adapter_loads: int = 0
    running_adapters: list[str] = []
    """Names of adapters with a running request."""
    waiting_adapters: list[str] = []
    clients: dict[str, ClientStats] = {}
    adapters: dict[str, AdapterStats] = {}
    """By digest; only adapters that have been used."""
    num_failed_exchanges: int = 0
    """How often the counters that servers share were away."""
    wire: dict[str, WireStats] = {}
    """By site: qkv, o, ... ; empty with one rank."""


class Outputs(msgspec.Struct, tag=True, array_like=True):
    """Everything one step produced, and now and then a snapshot."""

    outputs: list[RequestOutput]
    stats: EngineStats | None = None


class Ready(msgspec.Struct, tag=True, array_like=True):
    """The engine is warm. Sent once."""

    max_model_len: int
    vocab_size: int
    dtype: str
    num_pages: int
    page_tokens: int
    page_bytes: int
    policy: str
    eos_token_ids: list[int]
    tensor_parallel: int = 1


class Failed(msgspec.Struct, tag=True, array_like=True):
    """The engine cannot start, or has to end. Sent once, last."""

    error_type: str
    error: str


ToEngine = Submit | SubmitAll | Abort | LoadAdapter | UnloadAdapter | PinAdapter | ListAdapters | SetWeights | Shutdown
FromEngine = Outputs | Answer | Ready | Failed
