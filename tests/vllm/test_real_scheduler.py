"""Our books inside vLLM's own scheduler: random lives of requests, outputs made up, every book checked after every step."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_scheduler import BLOCK_TOKENS, RealDriver

import vllm
from evenflow.fairness import policy_registry
from evenflow.fairness.policies.vtc import VTC
from evenflow.integrations.vllm.interface import TESTED, check_interface, differences
from evenflow.integrations.vllm.scheduler import find

SPECS = [
    *(name for name in policy_registry() if name not in ("vtc-shared", "vtc-oracle", "vtc-half-lift", "rpm")),
    "cluster:2+vtc-preempt:50",
    "vtc-preempt:30",
]

ACTION = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 4), st.integers(1, 60), st.integers(1, 12), st.integers(0, 4)),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("abort"), st.integers(0, 1000)),
    st.tuples(st.just("preempt_all")),
)


def test_the_installed_vllm_has_the_interface():
    assert differences(find) == []
    assert check_interface(vllm.__version__, find, allow_untested=True) is None or vllm.__version__ not in TESTED


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("spec", SPECS)
@given(
    actions=st.lists(ACTION, max_size=60), max_loras=st.sampled_from([None, 1, 2]), num_blocks=st.sampled_from([24, 60, 400])
)
@settings(max_examples=20, deadline=None)
def test_books_agree_with_vllm_after_every_step_and_everybody_is_served(is_async, spec, actions, max_loras, num_blocks):
    driver = RealDriver(spec, is_async=is_async, max_loras=max_loras, num_blocks=num_blocks)
    scheduler = driver.scheduler
    wanted, aborted = {}, set()
    for action in actions:
        if action[0] == "add":
            _, client, prompt, output, lora = action
            request = driver.add(f"c{client}", prompt, output, lora if max_loras else 0)
            wanted[request.request_id] = output
        elif action[0] == "step":
            for _ in range(action[1]):
                driver.step()
        elif action[0] == "abort" and scheduler.requests:
            request_id = list(scheduler.requests)[action[1] % len(scheduler.requests)]
            aborted.add(request_id)
            driver.abort(request_id)
        elif action[0] == "preempt_all":
            scheduler.reset_prefix_cache(reset_running_requests=True)
        driver.check()
    driver.run()
    driver.check()
    assert not len(scheduler.waiting)
    for request_id, output in wanted.items():
        if request_id not in aborted:
            assert driver.num_output_tokens[request_id] == output
    figures = scheduler._figures.clients
    everybody = [*figures.by_name.values(), figures.other]
    assert sum(tally.num_waiting + tally.num_running for tally in everybody) == 0
    assert sum(tally.completion_tokens for tally in everybody) >= sum(
        output for request_id, output in wanted.items() if request_id not in aborted
    )


class Ledger(VTC):
    """VTC that writes down what each request was charged in the end, and for what."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.accounts: dict = {}

    def settle(self, request) -> None:
        account = self._accounts[request.request_id]
        super().settle(request)
        assert request.request_id not in self.accounts, "settled twice"
        self.accounts[request.request_id] = account


@pytest.mark.parametrize("is_async", [True, False])
@given(seed=st.integers(0, 10**6), max_loras=st.sampled_from([None, 2]))
@settings(max_examples=60, deadline=None)
def test_each_token_is_charged_once(is_async, seed, max_loras):
    rng = random.Random(seed)
    driver = RealDriver("vtc", is_async=is_async, max_loras=max_loras, num_blocks=rng.choice([24, 60]))
    scheduler = driver.scheduler
    ledger = Ledger(scheduler.waiting._books._queues)
    scheduler.waiting._books.policy = ledger
    finished, prefixes = {}, [[100 + p] * 24 for p in range(2)]
    for _ in range(60):
        if rng.random() < 0.6:
            prompt = [*rng.choice(prefixes)[: rng.randint(0, 24)], *(rng.randint(200, 900) for _ in range(rng.randint(1, 20)))]
            request = driver.add(f"c{rng.randint(0, 3)}", prompt, rng.randint(1, 10), rng.randint(0, 4) if max_loras else 0)
            finished[request.request_id] = request
        if scheduler.requests and rng.random() < 0.08:
            request_id = rng.choice(list(scheduler.requests))
            finished.pop(request_id, None)
            driver.abort(request_id)
        if rng.random() < 0.03:
            scheduler.reset_prefix_cache(reset_running_requests=True)
        driver.step()
    driver.run()
    num_hits = 0
    for request_id, request in finished.items():
        account = ledger.accounts[request_id]
        assert account.input_tokens + account.cached_tokens == request.num_prompt_tokens
        assert account.output_tokens == request.num_output_tokens == driver.num_output_tokens[request_id]
        assert account.cached_tokens % BLOCK_TOKENS == 0
        charged = account.bill.service + account.bill.in_advance
        assert charged == pytest.approx(account.input_tokens + 0.1 * account.cached_tokens + 2 * account.output_tokens)
        num_hits += account.cached_tokens > 0
    assert num_hits or len(finished) < 10, "no prompt was found in the cache: the test has lost its point"


@pytest.mark.parametrize("is_async", [True, False])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_bound_of_vtc_holds_inside_vllm(is_async, seed):
    """U = max(L, 2 M): M counts the tokens of the cache and, with overlap, one more of each running request."""
    rng = random.Random(seed)
    num_blocks, longest, max_num_seqs = 40, 40, 16
    driver = RealDriver("vtc", is_async=is_async, num_blocks=num_blocks, max_num_seqs=max_num_seqs)
    bound = max(longest, 2 * (num_blocks * BLOCK_TOKENS + is_async * max_num_seqs))
    num_compared, farthest = 0, 0.0
    for _ in range(120):
        for client in range(3):
            if rng.random() < (0.9, 0.4, 0.1)[client]:
                driver.add(f"c{client}", rng.randint(1, longest), rng.randint(1, 20))
        driver.step()
        counters = [driver.scheduler.waiting.counters()[client] for client in driver.waiting_clients()]
        if len(counters) > 1:
            num_compared += 1
            farthest = max(farthest, max(counters) - min(counters))
    assert num_compared > 20
    assert farthest <= bound


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_bound_with_lora_slots_is_wider_by_the_overtaking(seed):
    rng = random.Random(seed)
    num_blocks, longest, overtaking = 40, 40, 300.0
    driver = RealDriver("vtc", num_blocks=num_blocks, max_num_seqs=16, max_loras=1, settings={"overtaking": overtaking})
    bound = max(longest, 2 * (num_blocks * BLOCK_TOKENS + 16)) + overtaking
    for client, lora in (("a", 1), ("b", 2), ("c", 0)):
        for _ in range(60):
            driver.add(client, rng.randint(1, longest), rng.randint(1, 20), lora)
    num_compared = 0
    for _ in range(150):
        driver.step()
        counters = [driver.scheduler.waiting.counters()[client] for client in driver.waiting_clients()]
        num_compared += len(counters) == 3
        assert not counters or max(counters) - min(counters) <= bound
    assert num_compared > 20


def test_weights_are_kept():
    driver = RealDriver("vtc", num_blocks=200, max_num_seqs=8, is_checked=False)
    shares = driver.scheduler._shares
    shares.replace({"b": 2.0, "c": 4.0}, {}, {})
    for client in "abc":
        for _ in range(400):
            driver.add(client, 20, 10)
    for _ in range(300):
        driver.step()
    assert driver.waiting_clients() == {"a", "b", "c"}
    tokens = {client: driver.scheduler._figures.clients.by_name[client] for client in "abc"}
    service = {client: t.prompt_tokens + 2 * t.completion_tokens for client, t in tokens.items()}
    total = sum(service.values())
    for client, share in (("a", 1 / 7), ("b", 2 / 7), ("c", 4 / 7)):
        assert service[client] / total == pytest.approx(share, abs=0.02)


def test_a_quiet_client_need_not_wait_for_a_slot():
    first = {}
    for policy in ("fcfs", "vtc", "vtc-preempt:50", "fair"):
        driver = RealDriver(policy, num_blocks=2000, max_num_seqs=4)
        for _ in range(20):
            driver.add("busy", 10, 100)
        for _ in range(30):
            driver.step()
        quiet = driver.add("quiet", 10, 2)
        steps = 0
        while quiet.request_id not in driver.num_output_tokens:
            driver.step()
            steps += 1
        first[policy] = steps
        driver.run()
        assert sum(driver.num_output_tokens.values()) == 20 * 100 + 2
    assert first["vtc-preempt:50"] < first["vtc"] < first["fcfs"] / 4
    assert first["fair"] <= 3, "the step that is planned next, and the one in flight before it"


@pytest.mark.parametrize("is_async", [True, False])
def test_a_session_that_streams_its_input_is_charged_turn_by_turn(is_async):
    driver = RealDriver("vtc", is_async=is_async)
    scheduler = driver.scheduler
    ledger = Ledger(scheduler.waiting._books._queues)
    scheduler.waiting._books.policy = ledger
    charged = []

    def settle(request, settle=VTC.settle):
        account = ledger._accounts[request.request_id]
        settle(ledger, request)
        charged.append((request.client_id, account.input_tokens, account.output_tokens))

    ledger.settle = settle
    driver.add("a", list(range(10)), 3, request_id="s", resumable=True)
    driver.add("b", 10, 30)
    for _ in range(8):
        driver.step()
    assert charged == [("a", 10, 3)]
    driver.add("a", list(range(50, 55)), 4, request_id="s", resumable=True)
    for _ in range(8):
        driver.step()
    # of the three tokens, the last was not computed and is dropped by vLLM; two belong to the prompt and are there
    assert charged[1][0] == "a"
    assert charged[1][1:] == (5, 4)
    scheduler.finish_requests("s", vllm.v1.request.RequestStatus.FINISHED_ABORTED)
    driver.run()
    assert charged[2:] == [("b", 10, 30)]
    assert not ledger._accounts


def test_a_fault_falls_back_to_first_come_first_served():
    driver = RealDriver("vtc", is_checked=False, max_num_seqs=2)
    line = driver.scheduler.waiting

    def broken(now_s):
        raise ZeroDivisionError

    line._books.policy.pick = broken
    requests = [driver.add(f"c{i % 3}", 10, 4) for i in range(9)]
    driver.step()
    assert line.num_faults == 1
    assert driver.order == [request.request_id for request in requests[:2]]
    line._retry_s = 0.0
    driver.step()
    driver.scheduler.check_integrity()
    driver.run()
    assert line.num_faults == 1
    assert set(driver.num_output_tokens.values()) == {4}
