"""Newest first, and the order of S-LoRA's early abort."""

from evenflow.fairness import ClientQueues, create_policy
from evenflow.fairness.toy_server import ToyServer


def a_server(spec, **kwargs):
    queues = ClientQueues()
    return ToyServer(create_policy(spec, queues=queues), queues, 1000, **kwargs)


def drain(server):
    """Request ids in the order of their start."""
    order = []
    while server.queues.num_clients or server.running:
        before = {r.request_id for r in server.requests if r.was_admitted}
        server.step()
        server.check_integrity()
        order += [r.request_id for r in server.requests if r.was_admitted and r.request_id not in before]
    return order


def test_the_newest_is_first_whoever_asks():
    server = a_server("lcfs", max_running=1)
    for client in "aabba":
        server.submit(client, 1, 1)
    assert drain(server) == [4, 3, 2, 1, 0]


def test_a_preempted_request_goes_before_all():
    server = a_server("lcfs", max_running=1)
    first = server.submit("a", 1, 3)[1]
    server.step()
    assert server.preempt() is first
    server.submit("b", 1, 1)
    server.step()
    assert server.running == [first]


def test_nothing_of_those_that_left_is_kept():
    server = a_server("lcfs", max_running=1)
    for _ in range(50):
        server.submit("a", 1, 1)
    for request in server.requests[:49]:
        server.abort(request)
    assert len(server.policy._waiting) == 1


def test_oldest_first_until_more_come_than_are_taken():
    server = a_server("lcfs-overload", max_running=3)
    for _ in range(2):
        server.submit("a", 1, 1)
    # r = int(0.7 * 2 + 0.3 * 1) = 1 >= b = 1: overload by the rule, from its first figures on
    assert server.policy.pick(0.0).request_id == 1
    server.step()
    assert [r.request_id for r in server.requests if r.was_admitted] == [0, 1]
    # b = max(int(0.7 * 2 + 0.3 * 1), 1) = 1; nothing waits; one comes: r = int(0.7 * 1 + 0.3 * 1) = 1 >= 1
    for _ in range(6):
        server.submit("a", 1, 1)
    # r = int(0.7 * 6 + 0.3 * 1) = 4
    assert server.policy.pick(1.0).request_id == 7
    server.step()
    # three taken: b = int(0.7 * 3 + 0.3 * 1) = 2; none came: r = int(0.7 * (3 - 3) + 0.3 * 4) = 1 < 2: the oldest
    assert server.policy.pick(2.0).request_id == 2
    assert server.policy.pick(2.0).request_id == 2


def test_those_given_up_count_as_having_come():
    server = a_server("lcfs-overload", max_running=1)
    server.submit("a", 1, 1)
    server.step()
    for _ in range(5):
        server.submit("a", 1, 1)
    for request in server.requests[1:5]:
        server.abort(request)
    server.submit("a", 1, 1)
    # w - w' = 6 with the four: r = int(0.7 * 6 + 0.3 * 1) = 4 >= 1
    assert server.policy.pick(1.0).request_id == 6
    assert server.policy._arrivals == 4
