"""What a policy says it charged is what its counters rose by, for whole lives of requests."""

import random
from dataclasses import dataclass

import pytest

from evenflow.fairness.books.cost import KVBytesTime, Service
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.registry import create_policy


@dataclass(eq=False)
class Asked:
    request_id: int
    client_id: str
    adapter: str | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    arrival_s: float = 0.0
    max_output_tokens: int = 16
    is_complete: bool = True


@pytest.mark.parametrize("spec", ["vtc", "vtc-predict", "lcf", "vtc-adapter:4000:3", "cluster:2+vtc", "hierarchy"])
@pytest.mark.parametrize("cost", [None, KVBytesTime(0.5, 2.0)])
def test_the_price_of_what_was_received_is_what_the_counter_rose_by(spec, cost):
    draw = random.Random(7)
    for _ in range(20):
        queues = ClientQueues()
        policy = create_policy(spec, queues=queues, cost=cost)
        request = Asked(1, "ann", adapter="digest", num_prompt_tokens=draw.randint(2, 40))
        assert policy.arrive(request, 0.0).is_accepted
        queues.push(request)
        policy.backlogged("ann")
        assert policy.pick(0.0) is request
        queues.remove(request)
        cached = draw.randint(0, request.num_prompt_tokens - 1)
        loaded = draw.choice([0, 1 << 20, 3 << 20])
        prefill, output = request.num_prompt_tokens - cached, draw.randint(1, 12)
        before = policy.counters().get("ann", 0.0)
        policy.admitted(request, Service(prefill_tokens=prefill, cached_tokens=cached, adapter_bytes=loaded))
        policy.emptied("ann")
        policy.charge(request, Service(prefill_tokens=prefill, decode_tokens=1, cached_tokens=cached, adapter_bytes=loaded))
        for _ in range(output - 1):
            request.num_output_tokens += 1
            policy.charge(request, Service(decode_tokens=1))
        keeper = Asked(2, "ann", num_prompt_tokens=1)  # keeps the counter from being forgotten
        policy.arrive(keeper, 0.0)
        queues.push(keeper)
        policy.backlogged("ann")
        policy.settle(request)
        total = Service(prefill, output, 0, cached, loaded)
        assert policy.counters()["ann"] - before == pytest.approx(policy.price(total))


def test_a_policy_that_charges_nothing_tells_weighted_tokens():
    policy = create_policy("fcfs", queues=ClientQueues())
    assert policy.price(Service(10, 5, 3, 20, 999)) == 10 + 2 * 5 + 0.1 * 20
