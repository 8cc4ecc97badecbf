"""Progress: a bar where somebody looks at a terminal, a line now and then elsewhere, nothing of what is soon over."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys

from evenflow.base.logs import PatientHandler, use_log_format
from evenflow.base.progress import CLEAR, BarTeller, LineTeller, find_teller


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_over_itself_and_taken_away():
    stream, clock = Terminal(), Clock()
    with BarTeller(stream, clock) as tell:
        tell("loading", 0, 4)
        assert stream.getvalue() == "", "too early"
        clock.now_s += 1
        tell("loading", 1, 4)
        tell("loading", 2, 4)  # too soon after the last
        clock.now_s += 1
        tell("evil\x1b[2J\nname", 3, 4)
        clock.now_s += 1
        tell("reading, 50,000 rows", 0, 0)
    drawn = stream.getvalue().split(CLEAR)
    assert drawn == [
        "",
        "loading [######..................] 1 of 4 (25 %)",
        "evil\\x1b[2J\\nname [##################......] 3 of 4 (75 %)",
        "reading, 50,000 rows [........................] ",
        "",
    ]


def test_lines_come_every_few_seconds_and_at_the_end_of_what_had_some():
    said, clock = [], Clock()
    with LineTeller(said.append, clock) as tell:
        for done in range(11):
            tell("loading", done, 10)
            clock.now_s += 2
        tell("short", 1, 1)
        clock.now_s += 1
        tell("compiling", 0.5, 2.0)
        clock.now_s += 6
        tell("reading\n", 0, 0)
    assert said == [
        "loading: 3 of 10 (30 %)",
        "loading: 6 of 10 (60 %)",
        "loading: 9 of 10 (90 %)",
        "loading: 10 of 10 (100 %)",
        "reading\\n ...",
    ]


def test_what_is_over_soon_says_nothing():
    said, clock, stream = [], Clock(), Terminal()
    with LineTeller(said.append, clock) as tell, BarTeller(stream, clock) as draw:
        for done in range(5):
            tell("loading", done, 4)
            draw("loading", done, 4)
    assert said == []
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_but_not_beside_json(monkeypatch):
    assert isinstance(find_teller(print, Terminal()), BarTeller)
    assert isinstance(find_teller(print, io.StringIO()), LineTeller)
    root = logging.getLogger()
    handler = PatientHandler(2)
    monkeypatch.setattr(root, "handlers", [handler])
    use_log_format("json")
    assert isinstance(find_teller(print, Terminal()), LineTeller)


def test_a_line_of_the_log_takes_the_place_of_a_bar():
    ours, theirs = pty.openpty()
    handler = PatientHandler(theirs)
    handler.emit(logging.LogRecord("x", logging.WARNING, "", 0, "hello", (), None))
    assert handler.flush_within(5)
    assert os.read(ours, 1000) == CLEAR.encode() + b"hello\r\n"
    os.close(ours)
    os.close(theirs)


SCRIPT = """
import sys
from evenflow.base import progress
progress.QUIET_S = 0.0
with progress.find_teller(print) as tell:
    tell("working", 1, 2)
"""


def test_a_program_finds_out_where_it_speaks():
    ours, theirs = pty.openpty()
    on_terminal = subprocess.run([sys.executable, "-c", SCRIPT], stderr=theirs, stdout=subprocess.PIPE, check=True)
    assert b"working [############............] 1 of 2 (50 %)" in os.read(ours, 1000)
    assert on_terminal.stdout == b""
    elsewhere = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
    assert elsewhere.stderr + elsewhere.stdout == b""
    os.close(ours)
    os.close(theirs)
