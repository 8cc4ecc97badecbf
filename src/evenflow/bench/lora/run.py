"""One variant at work: its own arena, scheduler and backends on the shared model, driven step by step or by the clock.

The scheduler, memory, kernels and executor are the engine's; what it lacks is text and messages, so that it runs where
neither a web framework nor a message format is installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import islice

import torch

from evenflow.bench.lora.variants import Testbed, Unified
from evenflow.bench.replay.trace import Trace, TraceRow
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.measures.runlog import RequestRecord
from evenflow.fairness.registry import create_policy
from evenflow.serving.backends.choose import choose
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.core.plan import StepPlan, StepResult
from evenflow.serving.core.request import AdapterDigest, ClientId, FinishReason, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.step import compute_step
from evenflow.serving.memory.residency import Residency
from evenflow.serving.models.model_attention import make_attention
from evenflow.serving.scheduler.limits import SchedulerLimits
from evenflow.serving.scheduler.scheduler import Scheduler
from evenflow.serving.scheduler.shedding import PAPER_SLO_S, create_shedding


@dataclass(slots=True)
class Counts:
    """What happened in some steps."""

    seconds: float = 0.0
    steps: int = 0
    rows: int = 0
    """Tokens computed, prompts included."""
    output_tokens: int = 0
    finished: int = 0
    sequences: int = 0
    """Running requests, summed over steps."""
    distinct: int = 0
    """Distinct adapters, summed over steps."""
    adapter_bytes: int = 0
    """Rows of the distinct adapters of each step: what decoding has to read beside the model."""
    loaded_bytes: int = 0
    """Rows copied from the host into the arena."""
    loads: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0

    def add(self, other: Counts) -> None:
        """Sum field by field."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Run:
    """``memory_bytes``: size of the arena. ``policy`` and ``shed``: as for a server. One run computes at a time."""

    def __init__(
        self,
        testbed: Testbed,
        variant: Unified,
        memory_bytes: int,
        max_model_len: int,
        policy: str = "fcfs",
        shed: str = "none",
    ) -> None:
        layout, config = testbed.layout, testbed.config
        num_pages = memory_bytes // layout.page_bytes
        self._testbed = testbed
        self.storage = Storage(layout, num_pages, testbed.dtype, testbed.device)
        names = choose(testbed.device, testbed.dtype, config.shape)
        self._attention = make_attention(names.attention, self.storage, config, max_model_len)
        self._lora = variant.lora(self.storage)
        self.arena = variant.arena(testbed, num_pages)
        self._adapters = variant.adapters(testbed)
        self.residency = Residency(self.arena, self._adapters.record, num_slots=variant.num_slots(testbed))
        with torch.inference_mode():
            self._executor = variant.executor(testbed, self.storage, self._attention, self._lora, self._adapters)
        queues = ClientQueues()
        self.scheduler = Scheduler(
            policy=create_policy(policy, queues=queues),
            queues=queues,
            arena=self.arena,
            residency=self.residency,
            prefetch=variant.prefetch(testbed, num_pages),
            shedding=create_shedding(shed, PAPER_SLO_S if shed != "none" else None),
            limits=SchedulerLimits(
                max_num_seqs=testbed.max_num_seqs,
                max_batch_tokens=testbed.max_batch_tokens,
                max_model_len=max_model_len,
                page_tokens=layout.page_tokens,
            ),
        )
        self._bytes_by_slot: dict[int, int] = {}
        self._source: Iterator[TraceRow] = iter(())
        self._next_id = 0
        self.outputs: dict[str, list[int]] = {}
        """Token ids of ended requests; kept only if ``keep_outputs``."""
        self.keep_outputs = False

    def fill(self, num_adapters: int) -> None:
        """Make the first adapters resident, as many as fit beside an idle cache: where a run that runs for long has got to."""
        for number in range(num_adapters):
            digest = AdapterDigest(str(number))
            if self.residency.record(digest).num_pages > self.arena.num_free_for("adapter"):
                return
            if self.residency.acquire(digest) is None:
                return
            self.residency.release(digest)

    def close(self) -> None:
        """Give back what the executor holds. Idempotent."""
        self._executor.close()

    def saturate(self, rows: Iterator[TraceRow]) -> None:
        """Take requests from ``rows`` whenever fewer wait than may run; arrival times do not count."""
        self._source = rows

    def advance(self, num_steps: int) -> Counts:
        """Compute so many steps of the saturated run."""
        self._activate()
        counts = Counts()
        for _ in range(num_steps):
            missing = self._testbed.max_num_seqs - self.scheduler.num_waiting
            for row in islice(self._source, missing):
                self.add(row, 0.0)
            counts.add(self.step(_no_time))
        return counts

    def drain(self, rows: list[TraceRow]) -> Counts:
        """Serve a fixed set of requests, all there at once, to the last token."""
        self._activate()
        counts = Counts()
        for row in rows:
            self.add(row, 0.0)
        while self.scheduler.has_work:
            counts.add(self.step(_no_time))
        return counts

    def serve(self, trace: Trace) -> tuple[list[RequestRecord], Counts]:
        """Serve a trace by the clock, to its last token. Times in seconds from the start."""
        self._activate()
        counts = Counts()
        requests: list[Request] = []
        rejected: set[RequestId] = set()
        arrivals = iter(trace)
        arrival = next(arrivals, None)
        started_s = time.perf_counter()

        def clock() -> float:
            return time.perf_counter() - started_s

        while arrival is not None or self.scheduler.has_work:
            now_s = clock()
            while arrival is not None and arrival.arrival_s <= now_s:
                request = self.request(arrival, arrival.arrival_s)
                requests.append(request)
                if not self.scheduler.add(request, now_s).is_accepted:
                    rejected.add(request.request_id)
                arrival = next(arrivals, None)
            if self.scheduler.has_work:
                counts.add(self.step(clock))
            elif arrival is not None:
                time.sleep(max(0.0, arrival.arrival_s - clock()))
        counts.seconds = clock()
        records = [
            RequestRecord(
                request.client_id,
                request.arrival_s,
                request.num_prompt_tokens,
                request.num_output_tokens,
                request.known_output_tokens or 0,
                is_rejected=request.request_id in rejected,
                is_shed=request.request_id not in rejected and not request.is_complete,
                admitted_s=request.admitted_s,
                first_token_s=request.first_token_s,
                finished_s=request.finished_s if request.is_complete else None,
            )
            for request in requests
        ]
        return records, counts

    def request(self, row: TraceRow, arrival_s: float) -> Request:
        """A request of random tokens and known length."""
        number, self._next_id = self._next_id, self._next_id + 1
        if row.adapter is not None:  # as the catalog does when a request arrives
            self._testbed.adapters.host_rows(AdapterDigest(row.adapter))[1].read_ahead()
        vocab = self._testbed.config.shape.vocab_size
        return Request(
            RequestId(str(number)),
            ClientId(row.client),
            [(7919 * number + 104_729 * i) % vocab for i in range(row.input_len)],
            GREEDY,
            arrival_s,
            None if row.adapter is None else AdapterDigest(row.adapter),
            max_output_tokens=row.output_len,
            known_output_tokens=row.output_len,
        )

    def add(self, row: TraceRow, now_s: float) -> None:
        """Queue one request."""
        self.scheduler.add(self.request(row, now_s), now_s)

    def step(self, clock: Callable[[], float]) -> Counts:
        """One step; what happened in it. ``clock``: seconds, with the zero of the requests' arrival times."""
        scheduler, residency = self.scheduler, self.residency
        before_s = time.perf_counter()
        loads, loaded = residency.num_loads, residency.loaded_bytes
        snapshot = scheduler.snapshot()
        counts = Counts(preemptions=-snapshot.num_preemptions, recomputed_tokens=-snapshot.recomputed_tokens)
        step, ended = compute_step(scheduler, self._executor, clock, self._finished)
        counts.finished += len(ended)
        if step is not None:
            counts.output_tokens = len(step.result.tokens)
            counts.finished += len(step.finished)
            self._count_plan(step.plan, counts)
        snapshot = scheduler.snapshot()
        counts.preemptions += snapshot.num_preemptions
        counts.recomputed_tokens += snapshot.recomputed_tokens
        counts.loads = residency.num_loads - loads
        counts.loaded_bytes = residency.loaded_bytes - loaded
        counts.seconds = time.perf_counter() - before_s
        return counts

    def _finished(self, plan: StepPlan, result: StepResult) -> dict[RequestId, FinishReason]:
        """Requests end at their length and nowhere before; their tokens mean nothing."""
        finished: dict[RequestId, FinishReason] = {}
        for request_id, token in result.tokens.items():
            request = self.scheduler.get(request_id)
            assert request is not None
            assert token.error is None, token.error
            if request.num_output_tokens + 1 >= request.max_output_tokens:
                finished[request_id] = FinishReason.LENGTH
                if self.keep_outputs:
                    self.outputs[request_id] = [*request.output_token_ids, token.token_id]
        return finished

    def _count_plan(self, plan: StepPlan, counts: Counts) -> None:
        for load in plan.loads:
            self._bytes_by_slot[load.slot] = self._adapters.record(load.digest).size_bytes
        slots = {sequence.adapter_slot for sequence in plan.sequences} - {-1}
        counts.steps = 1
        counts.rows = plan.num_tokens
        counts.sequences = len(plan.sequences)
        counts.distinct = len(slots)
        counts.adapter_bytes = sum(self._bytes_by_slot[slot] for slot in slots)

    def _activate(self) -> None:
        """The runs share the model; its backends are those of the run that computes."""
        self._testbed.model.bind(self._attention, self._lora)


def _no_time() -> float:
    """The clock of a run in which arrival times do not count: it stands still, so that nobody ever waits too long."""
    return 0.0


__all__ = ["Counts", "Run"]
