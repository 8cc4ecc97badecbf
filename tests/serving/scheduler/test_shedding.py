"""Who is given up: S-LoRA's rule word for word, the forecast against what happened, and nothing charged or kept afterwards."""

from __future__ import annotations

import random

import pytest

from evenflow.base.errors import ConfigError, InvalidRequest, RegistryError
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policies.passthrough import PassThrough
from evenflow.fairness.registry import create_policy
from evenflow.serving.core.request import ClientId, FinishReason, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.simulated import LinearStepTime, simulate
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import (
    ExclusivePrefillRule,
    KnownPeak,
    MixedBatchRule,
    Scheduler,
    SchedulerLimits,
    create_shedding,
)
from evenflow.serving.scheduler.forecast import FirstTokenForecast, PrefillTime
from evenflow.serving.scheduler.shedding import Agenda, PaperShedding, PredictiveShedding


class Logged(PassThrough):
    """What the policy is told and asked, in order."""

    def __init__(self, policy) -> None:
        super().__init__(policy)
        self.events: list[tuple] = []
        self.attempt_s = -1.0

    def arrive(self, request, now_s):
        self.events.append(("arrive", request))
        return super().arrive(request, now_s)

    def pick(self, now_s):
        if now_s != self.attempt_s:
            self.attempt_s = now_s
            self.events.append(("attempt", now_s))
        return super().pick(now_s)

    def admitted(self, request, planned):
        self.events.append(("admitted", request))
        super().admitted(request, planned)

    def cancelled(self, request):
        self.events.append(("cancelled", request))
        super().cancelled(request)


def a_scheduler(policy: str, shedding, *, is_exclusive: bool = True, num_pages: int = 3000, max_num_seqs: int = 50):
    queues = ClientQueues()
    arena = Arena(num_pages)
    logged = Logged(create_policy(policy, queues=queues, is_simulation=True))
    rule = ExclusivePrefillRule(max_prefill_tokens=2000, decode_steps=10) if is_exclusive else MixedBatchRule()
    scheduler = Scheduler(
        policy=logged,
        queues=queues,
        arena=arena,
        residency=Residency(arena, lambda digest: None),
        limits=SchedulerLimits(max_num_seqs=max_num_seqs, max_batch_tokens=2000, max_model_len=2000, page_tokens=1),
        batch_rule=rule,
        admission=KnownPeak(),
        shedding=shedding,
    )
    return scheduler, logged


def requests_at(rate: float, end_s: float, seed: int = 0, clients: int = 1, **changes) -> list[Request]:
    rng = random.Random(seed)
    now_s, found = 0.0, []
    while True:
        now_s += rng.expovariate(rate)
        if now_s > end_s:
            return found
        found.append(
            Request(
                RequestId(f"r{len(found)}"),
                ClientId(f"c{rng.randrange(clients)}"),
                [0] * rng.randint(8, 400),
                GREEDY,
                now_s,
                max_output_tokens=500,
                known_output_tokens=rng.randint(8, 200),
                **changes,
            )
        )


STEP_TIME = LinearStepTime(0.03, 0.0003)


@pytest.mark.parametrize("rate", [0.5, 2.0, 6.0])
def test_early_abort_is_the_papers_rule(rate):
    """A copy of its queue, led by the calls alone, foretells at each who is given up and who starts in which order."""
    scheduler, logged = a_scheduler("lcfs-overload", PaperShedding())
    result = simulate(scheduler, requests_at(rate, 90.0), STEP_TIME)
    waiting: list[Request] = []  # newest first
    last_num, arrivals, batch, batch_before, taken = 0, 1, 1, 1, 0
    cancelled: list[Request] = []
    order: list[Request] = []
    num_newest = num_given_up = 0
    for what, value in logged.events:
        if what == "arrive":
            waiting.insert(0, value)
        elif what == "cancelled":
            cancelled.append(value)
        elif what == "attempt":
            arrivals = int(0.7 * (len(waiting) - last_num) + 0.3 * arrivals)
            too_late = [r for r in waiting if value - r.arrival_s + 0.5 >= 6.0]
            assert set(map(id, too_late)) == set(map(id, cancelled))
            num_given_up += len(too_late)
            waiting = [r for r in waiting if r not in too_late]
            batch_before, taken, cancelled = batch, 0, []
            is_overload = arrivals >= batch_before
            order = list(waiting) if is_overload else waiting[::-1]
            num_newest += is_overload and len(waiting) > 1
        else:
            assert value is order[taken]
            taken += 1
            waiting.remove(value)
            last_num, batch = len(waiting), max(int(0.7 * taken + 0.3 * batch_before), 1)
    shed = [r for r in result.requests if r.finish_reason is FinishReason.SHED]
    assert len(shed) == num_given_up
    assert all(r.finished_s - r.arrival_s >= 5.5 - 1e-9 for r in shed)
    if rate == 6.0:
        assert num_given_up > 50
        assert num_newest > 10
    if rate == 0.5:
        assert num_given_up == 0


@pytest.mark.parametrize("policy", ["fcfs", "vtc", "lcfs-overload", "cluster:1+vtc-predict", "hierarchy"])
@pytest.mark.parametrize("spec", ["paper", "predict"])
def test_with_any_policy_the_answered_are_in_time_and_the_others_cost_nothing(policy, spec):
    """Overload by a factor of about three. The paper's rule answers within the objective and the prefill that follows."""
    scheduler, _ = a_scheduler(policy, create_shedding(spec, 6.0), is_exclusive=False, max_num_seqs=8)
    charged: dict[str, float] = {}
    inner = scheduler.policy.charge
    scheduler.policy.charge = lambda r, s: (charged.__setitem__(r.request_id, 1.0), inner(r, s))
    result = simulate(scheduler, requests_at(6.0, 60.0, clients=3), STEP_TIME)
    scheduler.check_integrity()
    shed = [r for r in result.requests if r.finish_reason is FinishReason.SHED]
    served = [r for r in result.requests if r.finish_reason is FinishReason.LENGTH]
    assert len(shed) + len(served) == len(result.requests)
    assert len(shed) > 100
    assert scheduler.snapshot().num_shed == len(shed)
    assert not charged.keys() & {r.request_id for r in shed}
    late = [r for r in served if r.first_token_s - r.arrival_s > 6.0]
    assert len(late) <= 0.02 * len(served)


def test_prediction_gives_up_early_and_nobody_in_vain():
    """First come, first served: those without a chance are told at once, not after 5.5 s."""
    waits = {}
    served = {}
    for spec in ("paper", "predict"):
        scheduler, _ = a_scheduler("fcfs", create_shedding(spec, 6.0), is_exclusive=False, max_num_seqs=8)
        result = simulate(scheduler, requests_at(6.0, 90.0), STEP_TIME)
        shed = [r.finished_s - r.arrival_s for r in result.requests if r.finish_reason is FinishReason.SHED]
        waits[spec] = sorted(shed)[len(shed) // 2]
        served[spec] = sum(r.finish_reason is FinishReason.LENGTH for r in result.requests)
    assert waits["paper"] >= 5.5
    assert waits["predict"] < 0.5
    assert served["predict"] >= 0.9 * served["paper"]


@pytest.mark.parametrize(
    ("policy", "clients", "within"), [("fcfs", 1, 0.2), ("vtc", 1, 0.2), ("fcfs", 3, 0.2), ("vtc", 3, 0.35)]
)
def test_the_forecast_is_calibrated(policy, clients, within):
    """What was said on arrival against what came, in a queue that grows: the median of relative errors.

    Under VTC a wait also depends on what the other clients will send: that cannot be known, and costs accuracy.
    """
    shedding = PredictiveShedding(1e6)
    scheduler, _ = a_scheduler(policy, shedding, is_exclusive=False, max_num_seqs=8)
    said: dict[str, float] = {}
    plain = shedding.enqueued

    def enqueued(request, now_s):
        plain(request, now_s)
        said[request.request_id] = now_s - request.arrival_s + sum(shedding.forecast.rest(request, now_s))

    shedding.enqueued = enqueued
    requests = requests_at(3.0, 60.0, clients=clients)
    result = simulate(scheduler, requests, STEP_TIME)
    came = {r.request_id: r.first_token_s - r.arrival_s for r in result.requests}
    late = [r for r in came if came[r] > 2.0]
    assert len(late) > 50, "nobody waited"
    errors = sorted(abs(said[r] - came[r]) / came[r] for r in late)
    assert errors[len(errors) // 2] < within


def test_a_request_may_bring_its_own_objective():
    for spec in ("paper", "predict"):
        scheduler, _ = a_scheduler("fcfs", create_shedding(spec), is_exclusive=False, max_num_seqs=1)
        requests = requests_at(4.0, 20.0)
        for i, request in enumerate(requests):
            request.slo_ttft_s = (1.0, 1000.0, None)[i % 3]
        result = simulate(scheduler, requests, STEP_TIME)
        shed = {r.slo_ttft_s for r in result.requests if r.finish_reason is FinishReason.SHED}
        assert shed == ({1.0, None} if spec == "paper" else {1.0}), "paper has a default, predict only what requests bring"


def test_what_has_run_is_never_given_up():
    scheduler, _ = a_scheduler("fcfs", create_shedding("paper", 1.0), is_exclusive=False, max_num_seqs=2)
    request = requests_at(1.0, 100.0)[0]
    scheduler.add(request, request.arrival_s)
    plan = scheduler.plan(request.arrival_s)
    assert plan is not None
    scheduler._book.preempt(scheduler._running.get(request.request_id))
    assert scheduler._book.shed(request.arrival_s + 100.0) == []
    scheduler.check_integrity()


def test_an_objective_is_refused_where_nobody_keeps_it():
    scheduler, _ = a_scheduler("fcfs", None)
    request = requests_at(1.0, 10.0, slo_ttft_s=3.0)[0]
    with pytest.raises(InvalidRequest, match="--shed none") as caught:
        scheduler.add(request, 0.0)
    assert caught.value.param == "slo_ttft"


def test_the_agenda_forgets_those_that_left():
    agenda = Agenda()
    requests = requests_at(50.0, 20.0)
    for request in requests:
        agenda.add(1e9, request)
    for request in requests[10:]:
        request.admitted_s = 1.0
        agenda.drop()
    assert len(agenda._heap) < 150
    assert agenda.waiting() == [entry for entry in requests[:10] if entry in agenda.waiting()]
    assert len(agenda.waiting()) == 10
    assert agenda.due(0.0) == []
    assert len(agenda.due(2e9)) == 10


def test_prefill_time_is_the_line_of_best_fit():
    fit = PrefillTime(fade=1.0)
    assert fit(100) == 0.0
    fit.learn(100, 0.5)
    assert fit(100) == pytest.approx(0.5)
    assert fit(1000) == pytest.approx(0.5), "one point has no slope"
    for n in (10, 50, 200, 400, 100):
        fit.learn(n, 0.2 + 0.003 * n)
    assert fit(300) == pytest.approx(0.2 + 0.9, rel=1e-6)
    falling = PrefillTime(fade=1.0)
    for n in (10, 100, 1000):
        falling.learn(n, 1.0 / n)
    assert falling(1) >= 0
    assert falling(5000) >= 0


def test_a_forecast_knows_nothing_at_first_and_forgets_idle_lines():
    forecast = FirstTokenForecast()
    first, second = requests_at(1.0, 20.0)[:2]
    forecast.enqueued(first, 0.0)
    assert forecast.rest(first, 0.0) == (0.0, 0.0)
    forecast.enqueued(second, 0.0)
    forecast.check_integrity([first, second])
    forecast.started(first, 1.0)
    forecast.cancelled(second, 1.0)
    forecast.check_integrity([])
    for lines in (forecast.by_client, forecast.in_one_line):
        assert not lines._lines
        assert not lines._places


@pytest.mark.parametrize(
    ("spec", "slo", "error", "message"),
    [
        ("nope", None, RegistryError, "known: none, paper, predict"),
        ("none:1", None, RegistryError, "takes no argument"),
        ("none", 5.0, ConfigError, "nobody would keep it"),
        ("paper:6", None, RegistryError, "below the SLO of 6 s"),
        ("paper:x", None, RegistryError, "got 'x'"),
        ("paper:0.5", 0.4, RegistryError, "below the SLO of 0.4 s"),
        ("predict:0", None, RegistryError, "margin above 0"),
        ("predict:inf", None, RegistryError, "margin above 0"),
        ("predict", 0.0, ConfigError, "finite and above 0"),
        ("paper", float("nan"), ConfigError, "finite and above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(spec, slo, error, message):
    with pytest.raises(error, match=message):
        create_shedding(spec, slo)
