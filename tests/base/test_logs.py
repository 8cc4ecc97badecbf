"""Logging never waits for whoever should read the log, and others' names cannot forge lines of it."""

from __future__ import annotations

import fcntl
import logging
import os
import time

import pytest

from evenflow.base.logs import PatientHandler, PrintableFormatter, printable


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    os.close(reading)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.WARNING, "", 0, text, (), None)


def test_a_log_that_nobody_reads_holds_nobody_up_and_says_later_what_was_lost(pipe):
    reading, writing = pipe
    handler = PatientHandler(writing)
    began_s = time.monotonic()
    for i in range(5000):
        handler.emit(record(f"line {i} " + "x" * 100))
    assert time.monotonic() - began_s < 5
    assert not handler.flush_within(0.05)
    os.set_blocking(reading, False)
    text, deadline_s = b"", time.monotonic() + 20
    while not handler.flush_within(0.0) or b"lost" not in text:
        assert time.monotonic() < deadline_s
        try:
            text += os.read(reading, 1 << 16)
        except BlockingIOError:
            time.sleep(0.001)
    assert text.startswith(b"line 0 ")
    assert b"further lines were lost: nobody read the log" in text
    os.close(writing)


def test_a_reader_that_is_gone_ends_nothing(pipe):
    _, writing = pipe
    handler = PatientHandler(writing)
    os.close(writing)
    handler.emit(record("x"))
    assert handler.flush_within(5)


def test_names_that_others_chose_stay_on_their_line():
    assert printable("a\nb\x1b[31m\u2028é\udc80") == "a\\nb\\x1b[31m\\u2028é\\udc80"
    assert PrintableFormatter("%(message)s").format(record("tensor 'x\nERROR forged'")) == "tensor 'x\\nERROR forged'"
