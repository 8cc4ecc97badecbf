"""Routers: bounded imbalance, warmth, spreading of hot adapters, and the books they choose by."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.routing.affinity import Affinity
from evenflow.routing.prefixes import BLOCK_TOKENS, PrefixBook, prefix_blocks
from evenflow.routing.registry import ROUTERS, create_router
from evenflow.routing.router import RoutedRequest
from evenflow.routing.table import RoutingTable


def a_table(router, names="abcd") -> RoutingTable:
    table = RoutingTable(router)
    for name in names:
        table.joined(name)
    return table


@pytest.mark.parametrize("name", sorted(ROUTERS))
@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 9))
def test_any_router_chooses_one_that_is_there_and_the_books_balance(name, rng, num_replicas):
    table = a_table(create_router(name, seed=3), [str(i) for i in range(num_replicas)])
    under_way = []
    for _ in range(120):
        if rng.random() < 0.6 or not under_way:
            request = RoutedRequest(rng.choice([None, "x", "y", "z"]), rng.uniform(1, 5000))
            excluded = {str(rng.randrange(num_replicas))} if rng.random() < 0.2 else set()
            chosen = table.route(request, excluded)
            assert (chosen is None) == (num_replicas == 1 and excluded == {"0"})
            assert chosen not in excluded
            if chosen is not None:
                under_way.append((chosen, request))
        else:
            table.ended(*under_way.pop(rng.randrange(len(under_way))))
    for replica in table.replicas:
        assert replica.load == pytest.approx(sum(r.service for n, r in under_way if n == replica.name), abs=1e-6)
        assert replica.num_requests == sum(n == replica.name for n, _ in under_way)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.sets(st.integers(0, 11)), st.floats(0, 2))
def test_affinity_never_goes_beyond_its_slack(loads, warm, fraction):
    router = Affinity(fraction, least_slack=100.0)
    table = a_table(router, [f"r{i}" for i in range(len(loads))])
    for i, replica in enumerate(table.replicas):
        replica.load = loads[i]
        if i in warm:
            replica.adapters["hot"] = None
    chosen = router.choose(RoutedRequest("hot"), table.replicas)
    limit = min(loads) + 100.0 + fraction * sum(loads) / len(loads)
    assert chosen.load <= limit
    if any(i in warm and load <= limit for i, load in enumerate(loads)):
        assert "hot" in chosen.adapters, "a warm one was eligible"


def test_a_hot_adapter_spreads_and_a_quiet_one_stays():
    """What Ray Serve's multiplexing is criticised for (ray issue 65691): there the hot adapter stays on one replica."""
    spread = {}
    for name in ("affinity", "multiplexed"):
        table = a_table(create_router(name, seed=1), [str(i) for i in range(8)])
        where = {"hot": set(), "quiet": set()}
        for i in range(300):
            request = RoutedRequest("hot", 500.0)
            where["hot"].add(table.route(request))
            if i % 50 == 0:
                quiet = RoutedRequest("quiet", 100.0)
                where["quiet"].add(chosen := table.route(quiet))
                table.ended(chosen, quiet)
        spread[name] = where
    assert len(spread["affinity"]["hot"]) == 8
    assert len(spread["multiplexed"]["hot"]) <= 2
    assert len(spread["affinity"]["quiet"]) <= 2


def test_two_who_route_agree_on_the_home_of_a_cold_adapter():
    tables = [a_table(create_router("affinity")) for _ in range(2)]
    chosen = [[table.route(RoutedRequest(f"adapter{i}", 1.0)) for i in range(200)] for table in tables]
    assert chosen[0] == chosen[1]
    assert min(chosen[0].count(name) for name in "abcd") > 25, "homes are spread evenly"


def test_the_longest_shared_beginning_is_preferred():
    rng = random.Random(0)
    tokens = [rng.randrange(50_000) for _ in range(1000)]
    table = a_table(create_router("affinity"))
    first = table.route(RoutedRequest(None, 10.0, prefix_blocks(tokens)))
    for _ in range(5):
        assert table.route(RoutedRequest(None, 10.0, prefix_blocks([*tokens[:300], *tokens[:40]]))) == first
    other = [t + 1 for t in tokens]
    assert table.route(RoutedRequest(None, 10.0, prefix_blocks(other))) != first
    assert table.route(RoutedRequest(None, 10.0, prefix_blocks(tokens, salt="other"))) != first


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=400), st.lists(st.integers(0, 3), max_size=400))
def test_shared_beginnings_are_counted_in_whole_blocks(one, two):
    book = PrefixBook()
    book.add(prefix_blocks(one))
    common = 0
    while common < min(len(one), len(two)) and one[common] == two[common]:
        common += 1
    assert book.num_shared_tokens(prefix_blocks(two)) == common // BLOCK_TOKENS * BLOCK_TOKENS


def test_the_longest_unused_beginnings_are_forgotten_first():
    book = PrefixBook(limit=3)
    book.add((1, 2))
    book.add((3,))
    book.add((1, 2))
    book.add((4,))
    assert (len(book), book.num_shared_tokens((1, 2)), book.num_shared_tokens((3,))) == (3, 2 * BLOCK_TOKENS, 0)


def test_a_report_replaces_what_was_guessed():
    table = a_table(create_router("affinity"), "a")
    request = RoutedRequest("x", 10.0)
    table.route(request)
    table.resident("a", ["y"])
    table.foreign("a", 30.0)
    assert (list(table.replicas[0].adapters), table.replicas[0].load) == (["y"], 40.0)
    table.foreign("a", 0.0)
    table.ended("a", request)
    assert table.replicas[0].load == 0.0
    table.left("a")
    table.ended("a", request)
    assert table.route(request) is None


def test_what_is_refused():
    for spec, error in (("nearest", RegistryError), ("random:1", RegistryError), ("affinity:x", RegistryError)):
        with pytest.raises(error):
            create_router(spec)
    with pytest.raises(ConfigError, match="0 or more"):
        create_router("affinity:-1")
