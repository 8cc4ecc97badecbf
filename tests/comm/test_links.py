"""Links: rates, the token bucket, and the stopwatch."""

from __future__ import annotations

import pytest
import torch

from evenflow.base.errors import ConfigError
from evenflow.comm import Exchange, LocalCollective, get_compressor
from evenflow.comm.collectives.links import EmulatedLink, Link, TokenBucket, shaped
from evenflow.comm.collectives.stopwatch import Stopwatch, TimedCollective, TimedCompressor


class Clock:
    """A clock that only moves when somebody sleeps or a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_rates() -> None:
    assert Link.parse("unlimited").bit_per_s is None
    assert Link.parse("100mbit").bit_per_s == 100e6
    assert Link.parse("1Gbit/s").bit_per_s == 1e9
    assert Link.parse("2.5gbit").bit_per_s == 2.5e9
    for text in ("fast", "10", "0mbit", "-1gbit", "1gb"):
        with pytest.raises(ConfigError, match="allowed: unlimited, or a rate"):
            Link.parse(text)


def test_token_bucket_lets_exactly_the_rate_pass() -> None:
    clock = Clock()
    bucket = TokenBucket(8e6, burst_bytes=1000, clock=clock, sleep=clock.sleep)
    assert bucket.take(1000) == 0.0
    assert bucket.take(500_000) == pytest.approx(0.5)
    for _ in range(10):
        bucket.take(100_000)
    assert clock.now_s == pytest.approx((1000 + 500_000 + 1_000_000 - 1000) / 1e6)
    clock.now_s += 100.0
    assert bucket.take(1000) == 0.0
    assert bucket.take(1000) == pytest.approx(0.001)


def test_emulated_link_waits_for_the_bytes_sent() -> None:
    class Pair(LocalCollective):
        world_size = 2

    clock = Clock()
    link = EmulatedLink(Pair(), TokenBucket(8e6, burst_bytes=0, clock=clock, sleep=clock.sleep))
    link.all_reduce(torch.zeros(250_000))
    assert clock.now_s == pytest.approx(1.0)
    link.all_to_all(torch.zeros(2, 125_000))
    assert clock.now_s == pytest.approx(1.5)
    assert shaped(LocalCollective(), Link.parse("unlimited")).world_size == 1


def test_stopwatch_parts_add_up() -> None:
    clock = Clock()
    watch = Stopwatch(clock=clock)
    with watch.part("forward"):
        clock.now_s += 1.0
        with watch.part("encode"):
            clock.now_s += 2.0
            with watch.part("tp communication"):
                clock.now_s += 4.0
        clock.now_s += 0.5
    assert watch.seconds_by_part == {"forward": 1.5, "encode": 2.0, "tp communication": 4.0}
    watch.clear()
    assert watch.seconds_by_part == {}


def test_timed_exchange_gives_the_same_numbers() -> None:
    x = torch.randn(4, 64)
    for spec in ("int8-g32", "ae:8", "powersgd:4", "bf16"):
        watch = Stopwatch()
        plain, timed = get_compressor(spec), TimedCompressor(get_compressor(spec), watch)
        expected = Exchange("tp.forward", plain, LocalCollective()).sum(x)
        result = Exchange("tp.forward", timed, TimedCollective(LocalCollective(), watch, "tp communication")).sum(x)
        assert torch.equal(result, expected)
        assert {"encode", "decode", "tp communication"} <= set(watch.seconds_by_part)
