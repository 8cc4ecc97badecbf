"""What the default policy promises a quiet client: its first token within a bounded number of steps, whatever others send."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.fairness import ClientQueues, create_policy
from evenflow.serving.core.request import ClientId, FinishReason, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.simulated import LinearStepTime, SimulatedExecutor, VirtualClock
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.prefix_cache import PrefixCache
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import Scheduler, SchedulerLimits

SLOTS, ROWS, PAGE_TOKENS = 6, 24, 4
OTHERS = 4
"""Clients beside the quiet one: fewer than there are slots."""
LONGEST_PROMPT, LONGEST_OUTPUT = 60, 80


@dataclass
class Server:
    """The shipped scheduler, stepped by hand."""

    policy: str
    num_pages: int
    slots: int = SLOTS
    requests: list[Request] = field(default_factory=list)
    num_steps: int = 0

    def __post_init__(self) -> None:
        queues, arena = ClientQueues(), Arena(self.num_pages)
        residency = Residency(arena, {}.__getitem__)
        self.scheduler = Scheduler(
            policy=create_policy(self.policy, queues=queues),
            queues=queues,
            arena=arena,
            residency=residency,
            limits=SchedulerLimits(max_num_seqs=self.slots, max_batch_tokens=ROWS, max_model_len=200, page_tokens=PAGE_TOKENS),
            prefix_cache=PrefixCache(arena, residency.idle_pages, PAGE_TOKENS),
        )
        self.executor = SimulatedExecutor(LinearStepTime(), VirtualClock())

    def add(self, client: str, prompt: int, output: int) -> Request:
        number = len(self.requests)
        tokens = [number * 1000 + i for i in range(prompt)]
        request = Request(
            RequestId(str(number)),
            ClientId(client),
            tokens,
            GREEDY,
            float(self.num_steps),
            max_output_tokens=100,
            known_output_tokens=output,
        )
        self.requests.append(request)
        self.scheduler.add(request, float(self.num_steps))
        return request

    def step(self) -> None:
        plan = self.scheduler.plan(float(self.num_steps))
        self.scheduler.take_ended()
        self.num_steps += 1
        if plan is None:
            return
        result = self.executor.run(plan)
        alive = {name: self.scheduler.get(name) for name in result.tokens}
        ended = [n for n, r in alive.items() if r is not None and r.num_output_tokens + 1 == r.known_output_tokens]
        self.scheduler.commit(result, dict.fromkeys(ended, FinishReason.LENGTH), float(self.num_steps))
        self.scheduler.check_integrity()

    def alive(self) -> list[Request]:
        return [r for r in self.requests if self.scheduler.get(r.request_id) is not None]


ACTION = st.one_of(
    st.tuples(
        st.just("submit"),
        st.integers(0, OTHERS - 1),
        st.integers(1, LONGEST_PROMPT),
        st.integers(1, LONGEST_OUTPUT),
        st.integers(1, 12),
    ),
    st.tuples(st.just("step"), st.integers(1, 30)),
    st.tuples(st.just("abort"), st.integers(0, 1000)),
)


def act(server: Server, action: tuple) -> None:
    if action[0] == "submit":
        for _ in range(action[4]):
            server.add(f"other{action[1]}", action[2], action[3])
    elif action[0] == "abort":
        alive = [r for r in server.alive() if r.client_id != "quiet"]
        if alive:
            server.scheduler.abort(alive[action[1] % len(alive)].request_id, float(server.num_steps))
    else:
        for _ in range(action[1]):
            server.step()


def most_steps(prompt: int) -> int:
    """One step, and its prompt with those of everybody else that may be urgent, in half of the rows that decoding leaves."""
    rows = (ROWS - SLOTS) // 2
    return 1 + -(-(prompt + OTHERS * LONGEST_PROMPT) // rows)


@given(
    before=st.lists(ACTION, min_size=2, max_size=15),
    prompt=st.integers(1, LONGEST_PROMPT),
    meanwhile=st.lists(ACTION, max_size=8),
    num_pages=st.sampled_from([60, 120, 400]),
)
@settings(max_examples=120, deadline=None)
def test_a_client_that_comes_is_answered_within_the_bound(
    before: list[tuple], prompt: int, meanwhile: list[tuple], num_pages: int
) -> None:
    server = Server("fair", num_pages)
    for action in before:
        act(server, action)
    quiet = server.add("quiet", prompt, 1)
    arrived = server.num_steps
    for action in meanwhile:
        if action[0] != "step":
            act(server, action)
            if quiet.first_token_s is None:
                server.step()
    while quiet.first_token_s is None:
        assert server.num_steps - arrived < most_steps(prompt), "it still waits"
        server.step()


@pytest.mark.parametrize("num_pages", [200, 2000])
def test_one_token_requests_one_after_another_beside_a_flood(num_pages: int) -> None:
    """Under ``vtc`` each waits for one of the long answers to end."""
    most: dict[str, float] = {}
    served: dict[str, int] = {}
    for policy in ("vtc", "fair"):
        server = Server(policy, num_pages)
        for _ in range(60):
            server.add("greedy", 8, 100)
        for _ in range(20):
            server.step()
        waits = []
        quiet = server.add("quiet", 4, 1)
        for _ in range(280):
            server.step()
            if quiet.finished_s is not None:
                waits.append(quiet.finished_s - quiet.arrival_s)
                quiet = server.add("quiet", 4, 1)
        most[policy] = max([*waits, server.num_steps - quiet.arrival_s])
        snapshot = server.scheduler.snapshot()
        served[policy] = snapshot.prompt_tokens + snapshot.completion_tokens
    assert most["fair"] <= 3
    assert most["vtc"] > 30
    assert served["fair"] >= 0.97 * served["vtc"]


def test_a_crowd_that_comes_and_goes_is_answered_at_once() -> None:
    """A hundred clients, one request each, one after the other beside a flood: nobody waits for a slot."""
    server = Server("fair", 2000)
    for _ in range(60):
        server.add("greedy", 8, 100)
    guests = []
    for i in range(100):
        server.step()
        server.step()
        guests.append(server.add(f"guest{i}", 6, 5))
    for _ in range(40):
        server.step()
    waits = [request.first_token_s - request.arrival_s for request in guests if request.first_token_s is not None]
    assert len(waits) == 100
    assert max(waits) <= 2
    assert not [r for r in server.alive() if r.client_id != "greedy"]


def test_of_a_clients_requests_the_one_is_stopped_that_loses_least() -> None:
    """A quiet client that thinks between its requests stops one of the flood each time; almost nothing is computed again."""
    server = Server("fair", 2000)
    for _ in range(60):
        server.add("greedy", 8, 100)
    for _ in range(100):
        server.add("quiet", 4, 1)
        for _ in range(3):
            server.step()
    snapshot = server.scheduler.snapshot()
    assert snapshot.num_preemptions > 50
    assert snapshot.recomputed_tokens < snapshot.num_preemptions, "the newest would lose two tokens and more each time"
