"""One engine: a scheduler above, an executor below, the text rules between.

``step`` computes one step (see ``compute_step``) and tells what each request gained by it. The engine is the only
place that ends a request because of what it said. It knows no HTTP; names of adapters become digests here, and nowhere below.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from evenflow.base.errors import (
    AdapterCacheFull,
    AdapterError,
    ClientOverLimit,
    ConfigError,
    EvenFlowError,
    InvalidRequest,
    Rejected,
)
from evenflow.base.json_lines import FIELDS
from evenflow.comm.ledger import Ledger
from evenflow.fairness.books.live_shares import LiveShares
from evenflow.fairness.registry import without_secrets
from evenflow.serving.adapters.catalog import Catalog, PreparedAdapter
from evenflow.serving.client.messages import AdapterInfo, EngineStats, Ready, RequestOutput, Submit, Usage, WireStats
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.executor import Executor
from evenflow.serving.core.plan import StepPlan, StepResult
from evenflow.serving.core.request import AdapterDigest, FinishReason, Request, RequestId
from evenflow.serving.core.structured import TokenMask
from evenflow.serving.engine.constraints import Constraints
from evenflow.serving.engine.intake import make_request, refusal
from evenflow.serving.engine.load_times import LoadTimes
from evenflow.serving.engine.meters import Meters, collect_stats
from evenflow.serving.engine.repairs import Repairs
from evenflow.serving.engine.reply import Reply
from evenflow.serving.engine.step import compute_step
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler.scheduler import Scheduler
from evenflow.serving.scheduler.snapshot import EndedRequest
from evenflow.serving.text import Tokenizer

log = logging.getLogger("evenflow.engine")

_MOST_TOKENIZERS = 64
"""Of adapters with tokens of their own, kept ready."""


class Engine:
    """Owns the replies and the catalog's references; the scheduler owns the requests. One thread."""

    def __init__(
        self,
        *,
        config: EngineConfig,
        scheduler: Scheduler,
        residency: Residency,
        catalog: Catalog,
        executor: Executor,
        tokenizer: Tokenizer,
        shares: LiveShares,
        eos_token_ids: Sequence[int],
        vocab_size: int,
        dtype: str,
        page_bytes: int,
        constraints: Constraints,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog = catalog
        self._config = config
        self._scheduler = scheduler
        self._residency = residency
        self._executor = executor
        self._tokenizer = tokenizer
        self._extended: dict[tuple[object, ...], Tokenizer] = {}
        """By the tokens that an adapter adds."""
        self._shares = shares
        self._eos_token_ids = tuple(eos_token_ids)
        self._vocab_size = vocab_size
        self._dtype = dtype
        self._page_bytes = page_bytes
        self._constraints = constraints
        self._ledger = ledger
        self._clock = clock
        self._replies: dict[RequestId, Reply] = {}
        self._meters = Meters()
        self._load_times = LoadTimes()
        self._pinned: dict[str, AdapterDigest] = {}
        self.repairs = Repairs(catalog, self.unload_adapter, self._forget_pins)
        self.is_stalled = False
        """True if the last step had nothing to compute although requests wait: the policy lets nobody start now."""

    @property
    def has_work(self) -> bool:
        """True if a request waits or runs, or its constraint is being compiled."""
        return self._scheduler.has_work or self._constraints.is_compiling

    def ready(self) -> Ready:
        """What the parent is told once."""
        limits, snapshot = self._scheduler.limits, self._scheduler.snapshot()
        return Ready(
            max_model_len=limits.max_model_len,
            vocab_size=self._vocab_size,
            dtype=self._dtype,
            num_pages=snapshot.num_pages,
            page_tokens=limits.page_tokens,
            page_bytes=self._page_bytes,
            policy=without_secrets(self._config.policy),
            eos_token_ids=list(self._eos_token_ids),
            tensor_parallel=self._config.tensor_parallel,
        )

    def submit(self, message: Submit) -> RequestOutput | None:
        """Queue a request. Returns the refusal, if it is refused: nothing has happened then."""
        return self._admit(message, None)

    def _admit(self, message: Submit, mask: TokenMask | None) -> RequestOutput | None:
        try:
            self._submit(message, mask)
        except Rejected as error:
            return refusal(message.request_id, error, retry_after_s=error.retry_after_s)
        except InvalidRequest as error:
            return refusal(message.request_id, error, param=error.param)
        except AdapterError as error:
            return refusal(message.request_id, error, param="model")
        except EvenFlowError as error:
            return refusal(message.request_id, error)
        except Exception:  # No request, whatever is wrong with it, may end the loop for the others.
            log.exception("request %s of client %s could not be queued", message.request_id, message.client_id)
            return refusal(message.request_id, EvenFlowError("the request could not be queued; the server's log says why"))
        return None

    def abort(self, request_ids: Sequence[str]) -> list[RequestOutput]:
        """Stop these requests, because their client is gone; what each took. Ids that are not known belong to ended ones."""
        self._constraints.abort(request_ids)
        outputs = []
        for request_id in request_ids:
            now_s = self._clock()
            request = self._scheduler.abort(RequestId(request_id), now_s)
            if request is not None:
                usage = self._usage(self._replies[request.request_id], now_s)
                outputs.append(RequestOutput(request_id, finish_reason=FinishReason.ABORT.value, usage=usage))
                self._drop(request)
        return outputs

    def step(self) -> list[RequestOutput]:
        """Compute one step for everybody who runs; what each request gained by it."""
        outputs = self._take_compiled()
        started_s = self._clock()
        gained: list[RequestOutput] = []

        def read(plan: StepPlan, result: StepResult) -> dict[RequestId, FinishReason]:
            self._constraints.advance(plan, result)
            return self._read(plan, result, gained)

        step, ended = compute_step(self._scheduler, self._executor, self._clock, read)
        self.is_stalled = step is None
        if step is None:
            return outputs + self._tell_ended(ended)
        if step.plan.loads:
            self._load_times.note(step.plan.loads, step.planned_s, step.result.loading_s, step.ran_s)
        for digest in step.result.failed_loads:
            self.repairs.note(digest)
        outputs += self._tell_ended(ended)
        for output in gained:
            reply = self._replies.get(RequestId(output.request_id))
            if reply is None:  # Its adapter could not be loaded, so that this token was computed with wrong weights.
                continue
            if output.finish_reason is not None:
                output.usage = self._usage(reply, step.ran_s)
                self._drop(reply.request)
            elif reply.request.num_output_tokens == 1:
                output.usage = reply.usage(step.ran_s, 0.0, self._load_times.during(reply.request))
            outputs.append(output)
        scheduling_s = (step.planned_s - started_s) + (self._clock() - step.ran_s)
        self._meters.record(scheduling_s=scheduling_s, executing_s=step.ran_s - step.planned_s, num_tokens=step.plan.num_tokens)
        return outputs

    def register_adapter(self, name: str, adapter: PreparedAdapter, *, replace: bool = False) -> None:
        """Serve ``adapter`` under ``name``. Raises AdapterExists, AdapterCacheFull, AdapterError."""
        if len(self.catalog) >= self._config.max_adapters:
            raise AdapterCacheFull(f"{len(self.catalog)} adapters are registered; allowed: {self._config.max_adapters}")
        record, num_pages = adapter.record, self._scheduler.snapshot().num_pages
        if record.num_pages + 2 > num_pages:
            raise AdapterError(
                f"adapter {name!r} needs {record.num_pages} pages and a request two more; the arena has {num_pages}"
            )
        self.catalog.register(name, adapter, replace=replace)
        if name in self._pinned and self._pinned[name] != record.digest:
            self._residency.unpin(self._pinned.pop(name))

    def waits_for_rows(self, message: Submit) -> bool:
        """True while the rows of the request's adapter are being made again: submit it when that has ended."""
        digest = self.catalog.digest_by_name.get(message.adapter or "")
        return digest is not None and not self._residency.is_loaded(digest) and self.repairs.is_needed(digest)

    def unload_adapter(self, name: str, *, purge: bool = False) -> None:
        """Forget ``name``; memory is freed when its last request ends. Raises AdapterNotFound.

        ``purge``: the row file in the cache goes too.
        """
        digest = self.catalog.resolve(name)
        if self._pinned.pop(name, None) is not None and digest not in self._pinned.values():
            self._residency.unpin(digest)
        self.catalog.unregister(name, purge=purge)

    def pin_adapter(self, name: str, is_pinned: bool) -> None:
        """Load the adapter now and keep it, or let it be evicted again. Raises AdapterNotFound, AdapterError."""
        digest = self.catalog.resolve(name)
        if is_pinned:
            self._residency.pin(digest)
            self._pinned[name] = digest
        elif self._pinned.pop(name, None) is not None and digest not in self._pinned.values():
            self._residency.unpin(digest)

    def set_weights(
        self,
        weight_by_client: Mapping[str, float],
        tier_by_client: Mapping[str, str] | None = None,
        weight_by_tier: Mapping[str, float] | None = None,
    ) -> None:
        """Replace the clients' own weights and tiers; all stay as they are if one weight is not from 1e-9 to 1e9."""
        try:
            self._shares.replace(weight_by_client, tier_by_client or {}, weight_by_tier or {})
        except ConfigError as error:
            log.error("weights and tiers are kept as they were: %s", error)
            return
        self._scheduler.policy.shares_changed()

    def adapters(self, names: set[str] | None = None) -> list[AdapterInfo]:
        """What is known of the adapters (of those in ``names``), draining ones included."""
        if names is not None:
            known = self.catalog.digest_by_name
            return [self._adapter_info(name, known[name]) for name in names if name in known]
        infos = []
        for digest in self.catalog:
            for name in self.catalog.names(digest) or (self.catalog.last_name(digest),):
                infos.append(self._adapter_info(name, digest))
        return infos

    def stats(self) -> EngineStats:
        """A snapshot for metrics, limits and reports."""
        stats = collect_stats(
            self._scheduler,
            self._residency,
            self.catalog,
            self._meters,
            without_secrets(self._config.policy),
            self._shares.weight,
            self._clock(),
        )
        if self._ledger is not None:
            stats.wire = {
                site: WireStats(books.exchanges, books.planned, books.counted) for site, books in self._ledger.by_site.items()
            }
        return stats

    def close(self) -> None:
        """Give back what the executor holds, and what the policy holds outside this process."""
        self._constraints.close()
        self.catalog.close()
        self._executor.close()
        self._scheduler.policy.close()

    def _forget_pins(self, digest: AdapterDigest) -> None:
        for name in [name for name, pinned in self._pinned.items() if pinned == digest]:
            log.warning("adapter %s is no longer pinned: its rows are damaged", name)
            del self._pinned[name]

    def _take_compiled(self) -> list[RequestOutput]:
        """Queue the requests whose constraint has been compiled; the refusals of those whose constraint cannot be."""
        refusals = []
        for compiled in self._constraints.take_compiled():
            message, error = compiled.message, compiled.error
            if error is None:
                answer = self._admit(message, compiled.mask)
            else:
                param = error.param if isinstance(error, InvalidRequest) else None
                answer = refusal(message.request_id, error, param=param)
            if answer is not None:
                self._constraints.drop(RequestId(message.request_id))
                refusals.append(answer)
        return refusals

    def _submit(self, message: Submit, mask: TokenMask | None) -> None:
        digest = None if message.adapter is None else self.catalog.resolve(message.adapter)
        own = 0 if digest is None else self.catalog.record(digest).signature.vocab_size
        request = make_request(
            message, digest, self._scheduler.limits.max_model_len, own or self._vocab_size, message.arrival_s or self._clock()
        )
        if message.sampling.structured_outputs is not None and mask is None:
            mask = self._constraints.begin(message)
            if mask is None:
                return
        request.token_mask = mask
        reply = Reply(request, self._tokenizer_of(message), self._eos_token_ids, message.traceparent)
        verdict = self._scheduler.add(request, self._clock())
        if not verdict.is_accepted:
            raise ClientOverLimit(verdict.reason or "the policy rejects the request", verdict.retry_after_s)
        if digest is not None:
            self.catalog.retain(digest)
            if not self._residency.is_resident(digest):
                # Opens the row file, so that the system reads it from the disk while the request waits.
                self.catalog.rows(digest)
        self._replies[request.request_id] = reply

    def _tokenizer_of(self, message: Submit) -> Tokenizer:
        """The base model's, with the tokens that the request's adapter adds."""
        if not message.added_tokens:
            return self._tokenizer
        key = tuple(tuple(token) for token in message.added_tokens)
        if key not in self._extended:
            if len(self._extended) >= _MOST_TOKENIZERS:
                self._extended.pop(next(iter(self._extended)))
            self._extended[key] = self._tokenizer.with_tokens(message.added_tokens)
        return self._extended[key]

    def _read(self, plan: StepPlan, result: StepResult, gained: list[RequestOutput]) -> dict[RequestId, FinishReason]:
        """Turn tokens into text, appended to ``gained``; return the requests that are done, and why."""
        finished: dict[RequestId, FinishReason] = {}
        tokens = result.tokens
        for sequence in plan.sequences:
            request_id = sequence.request_id
            reply = self._replies.get(request_id)
            if reply is None:
                continue
            if sequence.prompt_logprobs is not None:
                reply.add_prompt_logprobs(sequence.start, result.prompt_logprobs[request_id])
            token = tokens.get(request_id)
            if token is None or token.error is not None:
                continue
            output = reply.push(token)
            if reply.finish_reason is not None:
                finished[request_id] = reply.finish_reason
            gained.append(output)
        return finished

    def _tell_ended(self, requests: Sequence[EndedRequest]) -> list[RequestOutput]:
        """Outputs for the requests that the scheduler itself had to end."""
        outputs = []
        for ended in requests:
            request = ended.request
            reply = self._replies[request.request_id]
            if request.finish_reason is FinishReason.LENGTH:
                output = reply.cut()
                assert request.finished_s is not None
                output.usage = self._usage(reply, request.finished_s)
            else:
                is_adapters_fault = request.adapter is not None and ended.error_type == "EvenFlowError"
                output = RequestOutput(
                    request.request_id,
                    error_type="AdapterError" if is_adapters_fault else ended.error_type,
                    error=ended.message,
                    retry_after_s=ended.retry_after_s,
                    predicted_ttft_s=ended.predicted_ttft_s,
                )
                level = logging.DEBUG if request.finish_reason is FinishReason.SHED else logging.WARNING
                told = {FIELDS: {"client": request.client_id, "traceparent": reply.traceparent}}
                log.log(level, "request %s of client %s: %s", request.request_id, request.client_id, ended.message, extra=told)
            self._drop(request)
            outputs.append(output)
        return outputs

    def _usage(self, reply: Reply, now_s: float) -> Usage:
        return reply.usage(now_s, self._scheduler.service_of(reply.request), self._load_times.during(reply.request))

    def _drop(self, request: Request) -> None:
        self._replies.pop(request.request_id, None)
        self._constraints.drop(request.request_id)
        if request.adapter is not None:
            self.catalog.release(request.adapter)

    def _adapter_info(self, name: str, digest: AdapterDigest) -> AdapterInfo:
        record, names = self.catalog.record(digest), self.catalog.names(digest)
        resident = self._residency.is_loaded(digest)
        return AdapterInfo(
            name=name,
            digest=digest,
            lora_rank=record.signature.max_lora_rank,
            size_bytes=record.size_bytes,
            num_pages=record.num_pages,
            state="draining"
            if not names
            else "resident"
            if resident
            else "host"
            if self.catalog.is_on_host(digest)
            else "disk",
            is_pinned=self._residency.is_pinned(digest),
            in_flight=self._scheduler.num_in_flight(digest),
            target_modules=list(self.catalog.target_modules(digest)),
            num_loads=self._residency.num_loads_of(digest),
            base_model=self.catalog.base_model(digest),
        )
