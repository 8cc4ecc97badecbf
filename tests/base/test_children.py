"""Children are watched, ended and collected, whatever they do, and leave word of what they ended of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from evenflow.base.children import ChildProcess, exit_in_words, read_obituary, write_obituary
from evenflow.base.errors import ConfigError, EngineDead

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"


def started(code: str, **options) -> ChildProcess:
    return ChildProcess([sys.executable, "-c", code], **options)


def is_process(pid: int) -> bool:
    """True for a zombie too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_that_ends_by_itself_is_collected_with_its_status():
    child = started("raise SystemExit(3)")
    assert child.wait(20)
    assert (child.exit_code, child.ended_how) == (3, "exit status 3")
    assert not is_process(child.pid)
    assert child.end()


@pytest.mark.parametrize("is_stopped", [False, True])
def test_one_that_will_not_end_is_killed_even_if_it_is_stopped(is_stopped):
    child = started(STUBBORN, stdout=-1)
    assert child.stdout.readline() == b"1\n"
    if is_stopped:
        child.send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    assert child.end(0.1, is_asked=True)
    assert time.monotonic() - began_s < 2
    assert child.ended_how == "signal SIGKILL"
    assert not is_process(child.pid)


def test_the_whole_group_of_a_leader_ends_with_it():
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    child = started(code, stdout=-1, is_leader=True)
    grandchild = int(child.stdout.readline())
    assert child.end(20)
    deadline_s = time.monotonic() + 10
    while is_process(grandchild) and psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_an_obituary_survives_the_border_and_a_broken_one_is_none(tmp_path):
    path = tmp_path / "death.json"
    assert read_obituary(path) is None
    write_obituary(path, ConfigError("memory is 1 KiB"))
    told = read_obituary(path, "rank 1: ")
    assert (type(told), str(told)) == (ConfigError, "rank 1: memory is 1 KiB")
    path.write_text("{")
    assert read_obituary(path) is None
    write_obituary(tmp_path / "no folder" / "death.json", EngineDead("x"))  # nothing can be written: nothing is raised


def test_signals_have_names():
    assert [exit_in_words(code) for code in (-9, -64, 2)] == ["signal SIGKILL", "signal SIGRTMAX", "exit status 2"]


def test_a_child_whose_parent_ended_while_it_started_ends_too():
    """The kernel tells of a parent's end only those who have asked before it."""
    code = "import sys; from evenflow.base.children import die_with_parent; die_with_parent(int(sys.argv[1])); print('lives')"
    for parent, printed in ((os.getpid(), b"lives\n"), (os.getppid(), b"")):
        ended = subprocess.run([sys.executable, "-c", code, str(parent)], stdout=subprocess.PIPE, timeout=60)
        assert ended.stdout == printed
        assert ended.returncode == (0 if printed else 1)
