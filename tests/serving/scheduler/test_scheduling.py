"""One rule of the scheduler at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kv_oracle import KVOracle, alone

from evenflow.base.errors import AdapterNotFound, ConfigError, InvalidRequest, PromptTooLong
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.registry import create_policy
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.plan import SampledToken, StepPlan, StepResult
from evenflow.serving.core.request import AdapterDigest, ClientId, FinishReason, Request, RequestId
from evenflow.serving.core.sampling import GREEDY, SamplingParams
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import ExclusivePrefillRule, PredictAndPreempt, Scheduler, SchedulerLimits
from evenflow.serving.scheduler.batching import BatchRule

ADAPTERS = {AdapterDigest("small"): 1, AdapterDigest("large"): 4}


def lookup(digest: AdapterDigest) -> AdapterRecord:
    if digest not in ADAPTERS:
        raise AdapterNotFound(f"no adapter {digest}")
    return AdapterRecord(digest, AdapterSignature(()), ADAPTERS[digest], 100)


class Server:
    """A scheduler, the oracle that computes its plans, and a clock that counts steps."""

    def __init__(
        self,
        *,
        policy: str = "fcfs",
        num_pages: int = 100,
        page_tokens: int = 4,
        max_num_seqs: int = 4,
        max_batch_tokens: int = 8,
        max_model_len: int = 200,
        batch_rule: BatchRule | None = None,
        has_watermark: bool = False,
    ) -> None:
        queues = ClientQueues()
        self.arena = Arena(num_pages)
        self.residency = Residency(self.arena, lookup)
        self.scheduler = Scheduler(
            policy=create_policy(policy, queues=queues),
            queues=queues,
            arena=self.arena,
            residency=self.residency,
            limits=SchedulerLimits(
                max_num_seqs=max_num_seqs,
                max_batch_tokens=max_batch_tokens,
                max_model_len=max_model_len,
                page_tokens=page_tokens,
            ),
            batch_rule=batch_rule,
            admission=PredictAndPreempt(growth_share=0.5 if has_watermark else 0.0),
        )
        self.oracle = KVOracle(num_pages, page_tokens, ADAPTERS)
        self.requests: dict[RequestId, Request] = {}
        self.now_s = 0.0

    def add(
        self,
        name: str,
        num_prompt: int,
        num_output: int = 10,
        *,
        client: str | None = None,
        adapter: str | None = None,
        sampling: SamplingParams = GREEDY,
    ) -> Request:
        request = Request(
            RequestId(name),
            ClientId(client or name),
            list(range(num_prompt)),
            sampling,
            self.now_s + len(self.requests) / 1000,
            None if adapter is None else AdapterDigest(adapter),
            max_output_tokens=num_output,
        )
        self.scheduler.add(request, self.now_s)
        self.requests[request.request_id] = request
        return request

    def step(self, meanwhile: Callable[[], None] = lambda: None) -> dict[str, int]:
        """Run a step; rows by request. Requests end at their max_output_tokens."""
        plan = self.scheduler.plan(self.now_s)
        if plan is None:
            return {}
        result = self.oracle.run(plan, self.requests)
        meanwhile()
        self.now_s += 1.0
        finished = {
            request_id: FinishReason.LENGTH
            for request_id in result.tokens
            if self.requests[request_id].num_output_tokens + 1 >= self.requests[request_id].max_output_tokens
        }
        self.scheduler.commit(result, finished, self.now_s)
        self.scheduler.check_integrity()
        return {str(s.request_id): s.num_tokens for s in plan.sequences}

    def drain(self) -> None:
        for _ in range(1000):
            if not self.step():
                break
        assert not self.scheduler.has_work
        for request in self.requests.values():
            assert request.output_token_ids == alone(request.adapter, request.prompt_token_ids, request.num_output_tokens)


def test_prompts_are_chunked_beside_decodes_under_one_budget() -> None:
    server = Server(max_batch_tokens=8)
    server.add("a", 3)
    assert server.step() == {"a": 3}
    server.add("b", 20)
    assert server.step() == {"a": 1, "b": 7}
    server.add("c", 5)
    assert server.step() == {"a": 1, "b": 7}
    assert server.step() == {"a": 1, "b": 6, "c": 1}
    assert server.step() == {"a": 1, "b": 1, "c": 4}
    assert server.step() == {"a": 1, "b": 1, "c": 1}
    server.drain()


def test_a_token_comes_only_after_the_whole_prompt() -> None:
    server = Server(max_batch_tokens=4)
    request = server.add("a", 10, 2)
    for expected in (0, 0, 1, 2):
        assert request.num_output_tokens < 2
        server.step()
        assert request.num_output_tokens == expected
    assert (request.admitted_s, request.first_token_s, request.finished_s) == (0.0, 3.0, 4.0)


def test_exclusive_prefill_takes_whole_prompts_alone_and_waits_its_turn() -> None:
    server = Server(batch_rule=ExclusivePrefillRule(max_prefill_tokens=12, decode_steps=3))
    server.add("a", 6)
    server.add("b", 6)
    server.add("c", 2)
    assert server.step() == {"a": 6, "b": 6}, "c does not fit the prefill budget any more"
    for _ in range(3):
        assert server.step() == {"a": 1, "b": 1}
    assert server.step() == {"c": 2}
    server.add("d", 100)
    for _ in range(3):
        assert server.step() == {"a": 1, "b": 1, "c": 1}
    assert server.step() == {"d": 100}, "one prompt above the budget goes alone"
    server.drain()


def test_exclusive_prefill_starts_at_once_when_nothing_runs() -> None:
    server = Server(batch_rule=ExclusivePrefillRule(max_prefill_tokens=12, decode_steps=100))
    server.add("a", 6, 2)
    assert server.step() == {"a": 6}
    server.add("b", 6, 1)
    assert server.step() == {"a": 1}
    assert server.step() == {"b": 6}


def test_kv_takes_free_pages_then_idle_adapters_then_preempts() -> None:
    server = Server(num_pages=6, page_tokens=4)
    server.add("warm", 1, 1, adapter="small")
    server.drain()
    assert server.residency.is_resident("small")
    server.add("a", 8, 20)
    server.add("b", 8, 20)
    for _ in range(3):
        server.step()
    assert server.arena.num_free == 0
    assert server.residency.is_resident("small")
    assert server.step() == {"a": 1, "b": 1}
    assert not server.residency.is_resident("small"), "b's ninth token got its page"
    server.step()
    b = server.requests[RequestId("b")]
    assert b.num_preemptions == 0
    assert server.step() == {"a": 1}
    assert b.num_preemptions == 1, "under FCFS the newest gives way to a's thirteenth token"
    assert server.scheduler.num_waiting == 1
    server.drain()
    assert b.finish_reason is FinishReason.LENGTH
    assert b.num_recomputed_tokens > 0
    assert server.scheduler.snapshot().recomputed_tokens == b.num_recomputed_tokens


def test_a_preempted_request_is_the_head_of_its_queue_and_keeps_its_tokens() -> None:
    server = Server(policy="vtc", num_pages=6, page_tokens=4, max_num_seqs=2)
    server.add("a", 8, 16, client="one")
    newest = server.add("b", 8, 16, client="one")
    server.add("c", 1, 1, client="one")
    while not newest.num_preemptions:
        server.step()
    produced = list(newest.output_token_ids)
    assert produced
    assert newest.num_computed_tokens == 0
    rows: dict[str, int] = {}
    while "b" not in rows:
        rows = server.step()
        assert "c" not in rows, "c has waited behind b all the time"
    server.drain()
    assert newest.output_token_ids[: len(produced)] == produced


def test_nobody_starts_in_the_step_of_a_preemption() -> None:
    server = Server(num_pages=5, page_tokens=2, max_num_seqs=3)
    server.add("a", 3, 20)
    server.add("b", 3, 20)
    server.step()
    server.add("c", 1, 1)
    rows: dict[str, int] = {}
    while not server.requests[RequestId("b")].num_preemptions:
        rows = server.step()
    assert set(rows) == {"a"}
    assert server.scheduler.snapshot().waiting_for == "memory"


def test_a_request_that_fills_the_memory_alone_is_cut() -> None:
    server = Server(num_pages=3, page_tokens=4)
    cut = server.add("a", 4, 100)
    other = server.add("b", 4, 3)
    for _ in range(60):
        server.step()
    assert cut.finish_reason is FinishReason.LENGTH
    assert cut.num_output_tokens == 9, "12 positions hold 4 + 8 tokens; the ninth needs no position of its own"
    assert other.num_output_tokens == 3
    assert [ended.request for ended in server.scheduler.take_ended()] == [cut]
    assert server.arena.num_free == 3


def test_others_run_in_the_very_step_in_which_one_is_cut() -> None:
    server = Server(num_pages=2, page_tokens=2, max_num_seqs=1)
    server.add("a", 2, 100)
    server.add("b", 2, 2)
    for _ in range(3):
        server.step()
    assert server.step() == {"b": 2}


@pytest.mark.parametrize(
    ("num_prompt", "num_output", "adapter", "error"),
    [
        (0, 1, None, InvalidRequest),
        (1, 0, None, InvalidRequest),
        (150, 51, None, PromptTooLong),
        (200, 1, None, PromptTooLong),
        (37, 1, None, PromptTooLong),
        (21, 1, "large", PromptTooLong),
        (1, 1, "nobody", AdapterNotFound),
    ],
)
def test_what_can_never_run_is_refused_and_leaves_nothing_behind(
    num_prompt: int, num_output: int, adapter: str | None, error: type[Exception]
) -> None:
    server = Server(num_pages=10, page_tokens=4)
    with pytest.raises(error):
        server.add("a", num_prompt, num_output, adapter=adapter)
    assert not server.scheduler.has_work
    assert dict(server.scheduler.clients) == {}
    server.scheduler.check_integrity()


def test_what_just_fits_runs() -> None:
    server = Server(num_pages=10, page_tokens=4)
    server.add("a", 36, 4)
    server.add("b", 20, 4, adapter="large")
    server.drain()
    assert not server.scheduler.take_ended()


def test_a_request_id_is_used_once() -> None:
    server = Server()
    server.add("a", 1)
    with pytest.raises(InvalidRequest, match="in use"):
        server.add("a", 1)


def test_head_of_line_nobody_overtakes_the_policys_choice() -> None:
    server = Server(num_pages=6, page_tokens=4, max_batch_tokens=64)
    server.add("a", 12, 20)
    server.add("large", 14, 4)
    server.add("tiny", 1, 1)
    assert server.step() == {"a": 12}
    assert server.scheduler.snapshot().waiting_for == "memory"
    server.drain()
    assert server.requests[RequestId("large")].admitted_s <= server.requests[RequestId("tiny")].admitted_s


def test_the_watermark_leaves_room_for_growth() -> None:
    server = Server(num_pages=19, page_tokens=4, max_batch_tokens=64, has_watermark=True)
    for name in "abc":
        server.add(name, 8, 20)
    assert set(server.step()) == {"a"}, "half of 64 tokens for each of two are 16 pages, b's prompt takes 2, a holds 2 of 19"
    server.drain()
    assert server.scheduler.snapshot().num_preemptions == 0


def test_an_adapter_too_big_for_what_is_free_takes_nothing_while_it_waits() -> None:
    server = Server(num_pages=7, page_tokens=4, max_batch_tokens=64)
    server.add("a", 12, 8)
    server.add("b", 4, 4, adapter="large")
    assert server.step() == {"a": 12}
    assert not server.residency.is_resident("large"), "half of what it needs is not taken"
    server.drain()
    assert server.residency.num_loads == 1


def test_adapters_share_one_load_and_stay() -> None:
    server = Server()
    for name in "abc":
        server.add(name, 2, 3, adapter="small")
    server.drain()
    server.add("d", 2, 3, adapter="small")
    server.drain()
    assert server.residency.num_loads == 1
    assert server.scheduler.snapshot().num_idle_adapter_pages == 1


def test_an_adapter_that_its_owner_has_dropped_ends_the_requests_that_wait_for_it() -> None:
    server = Server(max_num_seqs=1)
    server.add("a", 2, 3)
    orphan = server.add("b", 2, 3, adapter="small")
    ADAPTERS.pop(AdapterDigest("small"))
    try:
        server.drain()
    finally:
        ADAPTERS[AdapterDigest("small")] = 1
    assert orphan.finish_reason is FinishReason.ERROR
    assert "small" in server.scheduler.take_ended()[0].message


def test_pinned_adapters_do_not_stop_the_server() -> None:
    server = Server(num_pages=6, page_tokens=4)
    blocked = server.add("a", 12, 4)
    server.residency.pin(AdapterDigest("large"))
    server.add("b", 4, 2)
    server.drain()
    assert blocked.finish_reason is FinishReason.ERROR
    assert [ended.request for ended in server.scheduler.take_ended()] == [blocked]
    server.add("c", 12, 4)
    server.residency.unpin(AdapterDigest("large"))
    server.drain()
    assert server.requests[RequestId("c")].finish_reason is FinishReason.LENGTH


def test_abort_between_plan_and_commit_passes_over_the_request() -> None:
    server = Server()
    gone, stays = server.add("a", 2), server.add("b", 2)
    server.step(lambda: server.scheduler.abort(gone.request_id, server.now_s))
    assert gone.output_token_ids == []
    assert gone.finish_reason is FinishReason.ABORT
    assert stays.num_output_tokens == 1
    server.drain()


def test_abort_while_waiting_and_of_nobody() -> None:
    server = Server(max_num_seqs=1, policy="vtc")
    server.add("a", 2, client="one")
    waiting = server.add("b", 2, client="two")
    server.step()
    assert server.scheduler.abort(waiting.request_id, 1.0) is waiting
    assert server.scheduler.abort(waiting.request_id, 1.0) is None
    assert server.scheduler.abort(RequestId("nobody"), 1.0) is None
    server.scheduler.check_integrity()
    assert server.scheduler.num_waiting == 0


def test_a_token_that_is_not_finite_ends_its_request_only() -> None:
    server = Server()
    bad, good = server.add("a", 2), server.add("b", 2)
    plan = server.scheduler.plan(0.0)
    assert isinstance(plan, StepPlan)
    tokens = {bad.request_id: SampledToken(0, error="logits are not finite"), good.request_id: SampledToken(5)}
    server.scheduler.commit(StepResult(plan.step, tokens, {}), {}, 1.0)
    server.scheduler.check_integrity()
    assert bad.finish_reason is FinishReason.ERROR
    assert bad.output_token_ids == []
    assert good.output_token_ids == [5]
    assert [(e.request, e.message) for e in server.scheduler.take_ended()] == [(bad, "logits are not finite")]


def test_prompt_logprobs_are_asked_for_while_prompt_tokens_follow() -> None:
    server = Server(max_batch_tokens=4)
    scored = SamplingParams(temperature=0.0, prompt_logprobs=2)
    request = server.add("a", 5, 3, sampling=scored)
    wanted = []
    for _ in range(3):
        plan = server.scheduler.plan(server.now_s)
        assert plan is not None
        wanted.append((plan.sequences[0].prompt_logprobs, plan.sequences[0].prompt_token_ids))
        server.scheduler.commit(server.oracle.run(plan, server.requests), {}, 1.0)
    assert wanted == [(2, request.prompt_token_ids), (None, None), (None, None)]


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_batch_tokens"):
        SchedulerLimits(max_num_seqs=17, max_batch_tokens=16)
    with pytest.raises(ConfigError, match="max_model_len"):
        SchedulerLimits(max_model_len=0)
    with pytest.raises(ConfigError, match="max_prefill_tokens"):
        ExclusivePrefillRule(max_prefill_tokens=0)


def test_a_recomputed_output_cut_to_one_token_a_step_is_not_sampled_from() -> None:
    server = Server(max_batch_tokens=4, num_pages=40, policy="fcfs")
    request = server.add("long", 3, 12)
    for _ in range(6):
        server.step()
    entry = server.scheduler._running.get(request.request_id)
    assert entry is not None
    server.scheduler._book.preempt(entry)
    for name in ("a", "b", "c"):
        server.add(name, 1, 30)
    rows = [server.step() for _ in range(4)]
    assert any(step.get("long") == 1 for step in rows), "the case did not arise"
    server.drain()
