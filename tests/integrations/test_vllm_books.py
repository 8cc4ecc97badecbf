"""The books inside a scheduler like vLLM's: no model, no vLLM, the recorded seam."""

from __future__ import annotations

import random

import pytest
import recorded_vllm as vllm
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.fairness import policy_registry
from evenflow.fairness.policies.vtc import VTC

SPECS = [
    *(name for name in policy_registry() if name not in ("vtc-shared", "vtc-oracle", "vtc-half-lift", "rpm")),
    "cluster:1+vtc",
    "cluster:2+vtc-preempt:50",
    "vtc-preempt:30",
]
ABORTED = vllm.RequestStatus.FINISHED_ABORTED


@pytest.fixture(scope="module")
def integration():
    with pytest.MonkeyPatch.context() as patch:
        yield vllm.install(patch)


class Driver:
    """A scheduler at work: steps overlap by one, and every step is checked."""

    def __init__(self, integration, policy="vtc", settings=None, **config) -> None:
        config = vllm.a_config(evenflow={"policy": policy, **(settings or {})}, **config)
        self.scheduler = integration.FairScheduler(vllm_config=config)
        self.in_flight = []
        self.order: list[str] = []
        self.ended: list[str] = []
        self._next = 0

    def add(self, client, prompt=10, output=5, lora=None, cached=0, grammar_steps=0):
        lora_request = vllm.LoRARequest(f"lora{lora}", lora) if lora else None
        request = vllm.Request(f"r{self._next}", prompt, output, client, lora_request, grammar_steps)
        request.cached_tokens = cached
        self._next += 1
        self.scheduler.add_request(request)
        return request

    def step(self):
        before = {r.request_id for r in self.scheduler.running}
        output = self.scheduler.schedule()
        self.order += [r.request_id for r in self.scheduler.running if r.request_id not in before]
        self.in_flight.append(output)
        if len(self.in_flight) > 1 or not output.num_scheduled_tokens:
            self.ended += self.scheduler.update_from_output(self.in_flight.pop(0))
        self.check()
        return output

    def check(self):
        self.scheduler.check_integrity()
        assert self.scheduler.waiting.num_faults == 0
        assert len(self.scheduler.running) <= self.scheduler.max_num_active_reqs

    def run(self, steps=500):
        for _ in range(steps):
            self.step()
            if not self.scheduler.requests:
                return
        raise AssertionError(f"{len(self.scheduler.requests)} requests were never served")

    def counter(self, client):
        return self.scheduler.waiting.counters().get(client, 0.0)


ACTION = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 4), st.integers(1, 40), st.integers(1, 12), st.integers(0, 4), st.integers(0, 30)),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("abort"), st.integers(0, 1000)),
    st.tuples(st.just("preempt")),
)


@pytest.mark.parametrize("spec", SPECS)
@given(actions=st.lists(ACTION, max_size=50), max_loras=st.sampled_from([None, 1, 2]), memory=st.sampled_from([60, 120, 400]))
@settings(max_examples=6, deadline=None)
def test_books_agree_with_the_scheduler_after_every_step_and_everybody_is_served(integration, spec, actions, max_loras, memory):
    driver = Driver(integration, spec, max_loras=max_loras, memory_tokens=memory)
    scheduler = driver.scheduler
    for action in actions:
        if action[0] == "add":
            _, client, prompt, output, lora, cached = action
            driver.add(f"c{client}", prompt, output, lora, cached, grammar_steps=3 if (prompt + output) % 7 == 0 else 0)
        elif action[0] == "step":
            for _ in range(action[1]):
                driver.step()
        elif action[0] == "abort" and scheduler.requests:
            scheduler.finish_requests(list(scheduler.requests)[action[1] % len(scheduler.requests)], ABORTED)
        elif action[0] == "preempt" and scheduler.running:
            scheduler._preempt_request(scheduler.running.pop(), 0.0)
        driver.check()
    driver.run()
    assert not len(scheduler.waiting)
    figures = scheduler._figures
    assert sum(t.num_waiting + t.num_running for t in [*figures.clients.by_name.values(), figures.clients.other]) == 0


class Ledger(VTC):
    """VTC that writes down what each request was charged in the end."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.charged: dict = {}

    def settle(self, request) -> None:
        account = self._accounts[request.request_id]
        super().settle(request)
        self.charged[request.request_id] = account.bill.service + account.bill.in_advance


@given(seed=st.integers(0, 10**6), max_loras=st.sampled_from([None, 2]))
@settings(max_examples=12, deadline=None)
def test_each_token_is_charged_once(integration, seed, max_loras):
    rng = random.Random(seed)
    driver = Driver(integration, "vtc", max_loras=max_loras, memory_tokens=rng.choice([80, 200]))
    scheduler = driver.scheduler
    ledger = Ledger(scheduler.waiting._books._queues)
    scheduler.waiting._books.policy = ledger
    everybody, partly = {}, {}
    for _ in range(60):
        if rng.random() < 0.6:
            prompt = rng.randint(1, 40)
            request = driver.add(f"c{rng.randint(0, 3)}", prompt, rng.randint(1, 10), rng.randint(0, 4), rng.randint(0, 30))
            everybody[request.request_id] = request
        if scheduler.running and rng.random() < 0.1:
            scheduler._preempt_request(scheduler.running.pop(rng.randrange(len(scheduler.running))), 0.0)
        if scheduler.requests and rng.random() < 0.08:
            request_id = rng.choice(list(scheduler.requests))
            partly[request_id] = everybody.pop(request_id)
            scheduler.finish_requests(request_id, ABORTED)
        driver.step()
    driver.run()
    for request_id, request in everybody.items():
        cached = min(request.cached_tokens, request.num_prompt_tokens - 1)
        # what a preempted request finds in the cache when it comes back is not credited again
        assert ledger.charged[request_id] == pytest.approx(
            request.num_prompt_tokens - cached + 0.1 * cached + 2 * request.num_output_tokens
        )
    for request_id, request in partly.items():
        most = request.num_prompt_tokens + 2 * request.num_output_tokens
        assert 0 <= ledger.charged.get(request_id, 0.0) <= most
        assert ledger.charged.get(request_id, 0.0) >= 2 * request.num_output_tokens


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_counters_of_waiting_clients_stay_within_the_bound(integration, seed):
    """U = max(L, 2 M) as in the paper; what one step in flight adds is part of M, for it is in memory."""
    rng = random.Random(seed)
    memory, longest = 200, 40
    driver = Driver(integration, "vtc", memory_tokens=memory, max_num_seqs=100)
    for _ in range(150):
        for client in range(3):
            if rng.random() < (0.9, 0.4, 0.1)[client]:
                driver.add(f"c{client}", rng.randint(1, longest), rng.randint(1, 20))
        driver.step()
        waiting = {r.sampling_params.extra_args["evenflow_client"] for r in driver.scheduler.waiting}
        counters = [driver.counter(client) for client in waiting]
        assert not counters or max(counters) - min(counters) <= max(longest, 2 * memory)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_who_waits_for_a_lora_slot_is_overtaken_within_the_bound(integration, seed):
    rng = random.Random(seed)
    memory, longest, overtaking = 200, 40, 300.0
    driver = Driver(integration, "vtc", {"overtaking": overtaking}, memory_tokens=memory, max_num_seqs=100, max_loras=1)
    for client, lora in (("a", 1), ("b", 2), ("c", 0)):
        for _ in range(40):
            driver.add(client, rng.randint(1, longest), rng.randint(1, 20), lora)
    num_compared = 0
    for _ in range(100):
        driver.step()
        waiting = {r.sampling_params.extra_args["evenflow_client"] for r in driver.scheduler.waiting}
        counters = [driver.counter(client) for client in waiting]
        assert not counters or max(counters) - min(counters) <= max(longest, 2 * memory) + overtaking
        num_compared += len(counters) == 3
    assert num_compared > 10


def test_an_unbounded_overtaking_starves_who_needs_a_slot(integration):
    """What the bound is for: with inf, as in vLLM itself, b waits until a has nothing left."""
    seen = {}
    for overtaking in ("inf", "100"):
        driver = Driver(integration, "vtc", {"overtaking": overtaking}, max_loras=1, max_num_seqs=3)
        for i in range(30):
            driver.add("a", 10, (5, 9, 14)[i % 3], lora=1)
        late = driver.add("b", 10, 5, lora=2)
        driver.run()
        seen[overtaking] = driver.order.index(late.request_id)
    assert seen["inf"] == 30
    assert seen["100"] < 12


def test_a_request_that_is_passed_over_keeps_its_clients_place_and_costs_nothing(integration):
    driver = Driver(integration, "vtc", max_loras=1, max_num_seqs=3)
    driver.add("a", 10, 30, lora=1)
    driver.add("rich", 40, 30)
    driver.step()
    blocked = driver.add("b", 40, 5, lora=2)
    open_request = driver.add("b", 10, 5)
    driver.add("rich", 10, 5)
    before = driver.counter("b")
    driver.step()
    assert blocked in list(driver.scheduler.waiting)
    assert open_request in driver.scheduler.running, "the client's next request takes the turn"
    assert driver.counter("b") - before == 10, "only what started was charged"


def test_cached_prompt_tokens_cost_a_tenth(integration):
    driver = Driver(integration, "vtc", max_num_seqs=2)
    driver.add("a", 30, 20, cached=20)
    driver.add("b", 30, 20)
    driver.step()
    assert driver.counter("b") - driver.counter("a") == pytest.approx(20 - 2)


def test_a_quiet_client_takes_a_slot_from_a_busy_one(integration):
    for policy, is_quick in (("vtc", False), ("vtc-preempt:20", True)):
        driver = Driver(integration, policy, max_num_seqs=2, memory_tokens=4000)
        for _ in range(10):
            driver.add("busy", 10, 200)
        for _ in range(40):
            driver.step()
        quiet = driver.add("quiet", 5, 3)
        for _ in range(60):
            driver.step()
        assert (quiet.request_id in driver.ended) == is_quick
        driver.run(4000)
        busy = driver.scheduler._figures.clients.by_name["busy"]
        assert busy.completion_tokens == 10 * 200
        assert (busy.num_preemptions > 0) == is_quick


class Faulty(VTC):
    """Fails at one of its calls."""

    fails_at = ""

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "fails_at"):
            raise ZeroDivisionError(name)
        return object.__getattribute__(self, name)


@pytest.mark.parametrize(
    "call", ["arrive", "backlogged", "pick", "admitted", "emptied", "charge", "settle", "requeued", "cancelled", "displaced"]
)
def test_a_fault_in_the_books_costs_order_and_nothing_else(integration, call, caplog):
    driver = Driver(integration, "vtc", max_num_seqs=2)
    scheduler = driver.scheduler
    now = [100.0]
    line = scheduler.waiting
    line._clock = lambda: now[0]
    good_books = line._make_books
    driver.check = lambda: None
    faulty = good_books()
    faulty.policy = Faulty(faulty._queues)
    faulty.policy.fails_at = call
    line._books = faulty
    for i in range(12):
        driver.add(f"c{i % 3}", 10, 4)
        driver.step()
        if i == 4:
            scheduler._preempt_request(scheduler.running.pop(), 0.0)
        if i == 6:
            scheduler.finish_requests(next(iter(line)).request_id, ABORTED)
    assert line.num_faults == 1
    assert sum("the books have failed" in record.message for record in caplog.records) == 1
    now[0] += 10.0
    driver.step()
    scheduler.check_integrity()  # new books, and they agree
    driver.run()
    assert line.num_faults == 1


def test_steps_overlap_where_vllm_lets_them(integration):
    for is_async in (True, False):
        scheduler = integration.FairScheduler(vllm_config=vllm.a_config(async_scheduling=is_async))
        assert isinstance(scheduler, vllm.AsyncScheduler) == is_async
        assert isinstance(scheduler, integration.FairScheduler)


def test_books_that_cannot_even_be_made_leave_vllm_alone(integration):
    driver = Driver(integration, "vtc")
    line = driver.scheduler.waiting
    line._failed()
    line._retry_s = 0.0
    line._make_books = lambda: 1 / 0
    driver.check = lambda: None
    requests = [driver.add("a") for _ in range(6)]
    driver.run()
    assert driver.order == [request.request_id for request in requests]
    assert line.num_faults == 2


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"policy": "priority"}, "--scheduling-policy is 'priority'"),
        ({"connector": object()}, "a KV connector"),
        ({"runner_type": "pooling"}, "a pooling model"),
    ],
)
def test_what_was_not_tested_is_said_at_start(integration, config, says, caplog):
    with pytest.raises(ConfigError, match=says):
        integration.FairScheduler(vllm_config=vllm.a_config(**config))
    integration.FairScheduler(vllm_config=vllm.a_config(evenflow={"allow_untested": 1}, **config))
    assert says in caplog.text


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"policy": "nonsense"}, RegistryError, "nonsense"),
        ({"policy": "rpm:5"}, RegistryError, "rejects requests"),
        ({"policy": "cluster:2+rpm:5"}, RegistryError, "rejects requests"),
        ({"policy": "vtc-oracle"}, RegistryError, "oracle"),
        ({"clients": "/nowhere/clients.toml"}, ConfigError, "/nowhere/clients.toml"),
        ({"overtaking": "many"}, ConfigError, "overtaking is 'many'"),
        ({"polcy": "vtc"}, ConfigError, "evenflow.polcy is not known"),
    ],
)
def test_wrong_settings_are_said_at_start(integration, settings, error, says):
    with pytest.raises(error, match=says):
        integration.FairScheduler(vllm_config=vllm.a_config(evenflow=settings))


def test_weights_are_read_again_when_the_file_has_changed(integration, tmp_path):
    path = tmp_path / "clients.toml"
    path.write_text("[clients.a]\nweight = 1\n")
    driver = Driver(integration, "vtc", {"clients": path}, max_num_seqs=1)
    now = [0.0]
    driver.scheduler._clients._clock = lambda: now[0]
    driver.scheduler._clients._looked_s = now[0]
    for _ in range(8):
        driver.add("a", 10, 2)
    driver.step()
    start = driver.counter("a")
    path.write_text("[clients.a]\nweight = 100\n")
    for _ in range(10):
        driver.step()
    assert driver.counter("a") - start > 10, "not looked at yet"
    now[0] += 60.0
    driver.run()
    assert driver.scheduler._shares.weight("a") == 100
    path.write_text("[clients.a\n")
    now[0] += 60.0
    driver.step()
    assert driver.scheduler._shares.weight("a") == 100, "a broken file changes nothing"
