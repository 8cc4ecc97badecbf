"""Commands of the manual, taken from its pages and run as a reader would type them.

A mark stands in a comment before a fenced block:

    <!-- run -->            a bash block that is run; it must succeed
    <!-- run: slow -->      the same, in the slow tests only
    <!-- file: NAME -->     a block that the reader saves under this name
    <!-- prints -->         what the block before prints; ``...`` stands for anything

Blocks of the pages that are given together run in one shell and one folder, so that variables and servers stay. Port 8000
becomes a free one. A bash block without a mark is a fault, so that no command of these pages escapes.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LOOK_S = 1.0
"""How often the shell is looked at while it runs."""

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[a-z]+)(?:: (?P<argument>[^\n]*?))? -->\n)?```(?P<language>\w*)\n(?P<body>.*?)```", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    where: str
    """``page:line``, for messages."""
    mark: str
    argument: str
    language: str
    body: str


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page below docs/, in order."""
    text = (DOCS / page).read_text()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(f"{page}:{line}", match["mark"] or "", match["argument"] or "", match["language"], match["body"]))
    return found


def unmarked(page: str) -> list[str]:
    """Where a page has commands that no test would run."""
    return [block.where for block in blocks_of(page) if block.language in ("bash", "sh", "console", "") and not block.mark]


def run_pages(pages: Sequence[str], folder: Path, *, with_slow: bool, timeout_s: float) -> None:
    """Run the blocks of these pages in one shell. Raises AssertionError, naming the block, for one that fails."""
    port = _free_port()
    script, expected, last = [_prelude(folder)], {}, ""
    for page in pages:
        for block in blocks_of(page):
            body = re.sub(r"\b8000\b", str(port), block.body)
            if block.mark == "file":
                script.append(f"cat > {shlex.quote(block.argument)} <<'END_OF_BLOCK'\n{body}END_OF_BLOCK")
            elif block.mark == "run" and (with_slow or block.argument != "slow"):
                last = f"{len(expected)}"
                expected[last] = (block.where, "")
                script.append(f"NOW={shlex.quote(block.where)}; exec > out.{last}\n{body}")
            elif block.mark == "run":
                last = ""
            elif block.mark == "prints" and last:
                expected[last] = (expected[last][0], body)
    ended = _shell("\n".join([*script, "NOW=end"]), folder, timeout_s)
    assert ended.returncode == 0, f"status {ended.returncode}\n{ended.stderr[-3000:]}\n{_log(folder)}"
    for number, (where, pattern) in expected.items():
        printed = (folder / f"out.{number}").read_text()
        assert _is_like(printed, pattern), f"{where} printed\n{printed}\nand the page says\n{pattern}"


def _is_like(printed: str, pattern: str) -> bool:
    if not pattern:
        return True
    literal = re.sub(r"([\[\]*?])", r"[\1]", pattern.strip())
    return fnmatch.fnmatchcase(printed.strip(), literal.replace("...", "*"))


def _prelude(folder: Path) -> str:
    commands = folder / "bin"
    commands.mkdir()
    for name, command in {"evenflow": "-m evenflow.cli.main", "python": "", "torchrun": "-m torch.distributed.run"}.items():
        file = commands / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {command} "$@"\n')
        file.chmod(0o755)
    return "\n".join(
        [
            "set -euo pipefail",
            f"export PATH={shlex.quote(str(commands))}:$PATH",
            "trap 'echo \"failed in $NOW, line $BASH_COMMAND\" >&2; cat out.* >&2' ERR",
            "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT",
        ]
    )


def _shell(script: str, folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a script in a process group of its own, which is ended with it, however it ends."""
    shell = subprocess.Popen(
        ["bash", "-c", script], cwd=folder, env=_environment(), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(int(timeout_s / _LOOK_S) + 1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, errors = shell.communicate(timeout=_LOOK_S)
                return subprocess.CompletedProcess([], shell.returncode, output, errors)
            if re.search(r"^(evenflow serve|evenflow: error):? ", _log(folder), flags=re.MULTILINE):
                break  # the server did not start, and the page would wait for it
        raise AssertionError(f"did not end within {timeout_s} s, or its server did not start\n{_log(folder)}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def _environment() -> dict[str, str]:
    source = Path(__file__).parents[2] / "src"
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")]))}


def _log(folder: Path) -> str:
    log = folder / "serve.log"
    return log.read_text()[-3000:] if log.exists() else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
