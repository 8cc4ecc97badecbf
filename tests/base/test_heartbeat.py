"""A busy child is told from a stuck one, a stuck one from a silent one, and a watcher's own pause from all of them."""

from __future__ import annotations

import os

import pytest

from evenflow.base.heartbeat import _BEAT, PATIENCE, Heart, Watchdog


class Child:
    """What a child's thread would write, on a clock of the test's."""

    def __init__(self, limit_s: float = 10.0) -> None:
        self.now_s = 0.0
        self.watchdog = Watchdog(limit_s, lambda: self.now_s)
        self.progress, self.processor_s, self.is_serving = 0.0, 0.0, True

    def live(self, seconds: float, *, steps: float = 0.0, busy: float = 0.0, is_silent: bool = False) -> str | None:
        """Half seconds in which so many steps are done and so much of the processor is used per second; the last verdict."""
        fault = None
        for _ in range(int(seconds * 2)):
            self.now_s += 0.5
            self.progress += steps / 2
            self.processor_s += busy / 2
            if not is_silent:
                beat = _BEAT.pack(int(self.progress), int(self.processor_s * 1e9), self.is_serving)
                os.write(self.watchdog.descriptor, beat)
            fault = self.watchdog.look()
        return fault


@pytest.fixture
def child():
    child = Child()
    yield child
    child.watchdog.close()


def test_one_that_makes_steps_is_well(child):
    assert child.live(100, steps=1) is None
    assert child.live(100, steps=0.2) is None


def test_silence_is_noticed_worried_about_at_half_time_and_forgiven(child):
    child.live(5, steps=2)
    assert child.live(6, is_silent=True) is None
    assert "no sign of life for 6 s" in child.watchdog.worry()
    assert child.live(1, steps=2) is None
    assert child.watchdog.worry() is None
    assert "no sign of life for 10 s" in child.live(10.5, is_silent=True)


def test_a_step_that_waits_for_what_never_comes_is_stuck(child):
    child.live(5, steps=2)
    assert child.live(9, busy=0.001) is None
    assert "neither finished a step nor used the processor" in child.live(2, busy=0.001)


def test_a_step_that_computes_is_busy_and_not_for_ever(child):
    child.live(5, steps=2)
    assert child.live(10 * PATIENCE - 1, busy=0.9) is None
    assert "one step has taken" in child.live(2, busy=0.9)


def test_a_start_may_compile_for_as_long_as_it_takes_but_not_stand_still(child):
    child.is_serving = False
    assert child.live(50 * PATIENCE, busy=0.5) is None
    assert child.live(10 * PATIENCE - 2) is None
    assert "its start has stood still" in child.live(4)


def test_a_pause_of_the_watcher_is_not_held_against_the_child(child):
    child.live(5, steps=2)
    child.now_s += 3600  # Ctrl-Z, and an hour later fg: both were stopped
    assert child.watchdog.look() is None
    assert child.live(1, steps=2) is None


def test_no_limit_watches_nothing():
    child = Child(0.0)
    assert child.live(1000, is_silent=True) is None
    child.watchdog.close()


def test_a_full_pipe_and_a_gone_watcher_never_hold_up_the_child():
    watchdog = Watchdog(10.0)
    heart = Heart(os.dup(watchdog.descriptor))  # a child has its own
    while True:  # full
        try:
            os.write(watchdog.descriptor, b"x" * _BEAT.size)
        except BlockingIOError:
            break
    heart.start()
    heart.advance()
    heart.is_ready()
    assert watchdog.look() is None
    watchdog.close()
