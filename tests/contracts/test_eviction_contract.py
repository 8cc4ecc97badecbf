"""What every eviction order owes to the residency, over all registered orders; and what the scores mean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.base.errors import ConfigError
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.eviction import EVICTION_ORDERS, CostAware, LeastRecentlyUsed

RECORDS = [AdapterRecord(AdapterDigest(f"a{i}"), AdapterSignature(()), 1 + i, 100 * 4**i) for i in range(6)]
ACTIONS = st.lists(st.tuples(st.sampled_from(["use", "idle", "busy", "forget"]), st.integers(0, 5)), max_size=80)


@pytest.mark.parametrize("name", sorted(EVICTION_ORDERS))
@given(actions=ACTIONS)
@settings(max_examples=60, deadline=None)
def test_it_ranks_exactly_the_idle_and_ranking_changes_nothing(name, actions):
    order, idle = EVICTION_ORDERS.load(name)(), set()
    for action, number in actions:
        record = RECORDS[number]
        if action == "use":
            order.used(record)
        elif action == "idle" and record.digest not in idle:
            order.add(record)
            idle.add(record.digest)
        elif action == "busy" and record.digest in idle:
            order.remove(record.digest)
            idle.discard(record.digest)
        elif action == "forget" and record.digest not in idle:
            order.forget(record.digest)
        ranked = list(order.ranked())
        assert set(ranked) == idle
        assert len(ranked) == len(idle)
        assert order.first() == (ranked[0] if ranked else None)
        assert list(order.ranked()) == ranked
    for digest in list(order.ranked()):
        assert order.first() == digest, "the rank is the order in which they go"
        order.remove(digest)


def visit(order, *numbers):
    """Each is used and becomes idle again."""
    for number in numbers:
        record = RECORDS[number]
        if record.digest in list(order.ranked()):
            order.remove(record.digest)
        order.used(record)
        order.add(record)


def ranks(order):
    return [int(digest[1:]) for digest in order.ranked()]


def test_lru_goes_by_the_last_use_alone():
    order = LeastRecentlyUsed()
    visit(order, 0, 1, 2, 0, 0, 3, 1)
    assert ranks(order) == [2, 0, 3, 1]


def test_cost_aware_keeps_the_popular_although_they_were_used_longer_ago():
    order = CostAware(half_life=100)
    visit(order, 0, 0, 0, 0, 1, 1, 2)
    assert ranks(order) == [2, 1, 0]


def test_cost_aware_forgets_old_popularity():
    order = CostAware(half_life=5)
    visit(order, *[0] * 20, *[1] * 3, *[2, 3] * 15)
    assert ranks(order)[:2] == [1, 0], "twenty uses, thirty uses ago, are worth little"


@pytest.mark.parametrize(("exponent", "expected"), [(1.0, [0, 1, 2]), (-1.0, [2, 1, 0])])
def test_the_size_exponent_says_who_is_kept_for_its_bytes(exponent, expected):
    order = CostAware(size_exponent=exponent)
    visit(order, 0, 1, 2)
    assert ranks(order) == expected


def test_popularity_outlives_eviction_and_ends_with_forget():
    order = CostAware(half_life=100)
    visit(order, 0, 0, 0, 1)
    order.remove(RECORDS[0].digest)
    visit(order, 0)
    visit(order, 2, 2)
    assert ranks(order) == [1, 2, 0]
    order.remove(RECORDS[0].digest)
    order.forget(RECORDS[0].digest)
    visit(order, 1, 1, 0)
    assert ranks(order)[0] == 0


def test_the_order_of_the_idle_does_not_depend_on_when_it_is_asked():
    """Brute force: scores computed now, from every use, rank as the heap does."""
    order, uses = CostAware(half_life=7), []
    for step, number in enumerate([0, 1, 0, 2, 3, 1, 4, 0, 5, 2, 2, 3, 1, 0, 4] * 4, start=1):
        visit(order, number)
        uses.append((step, number))
        scores = {n: sum(2 ** ((at - step) / 7) for at, m in uses if m == n) for n in {m for _, m in uses}}
        assert [round(scores[n], 12) for n in ranks(order)] == sorted(round(score, 12) for score in scores.values())


@pytest.mark.parametrize("settings_", [{"half_life": 0}, {"half_life": -1}, {"size_exponent": float("nan")}])
def test_settings_out_of_range(settings_):
    with pytest.raises(ConfigError, match="allowed: above 0, finite"):
        CostAware(**settings_)
