"""Checks of the tree itself: how long files are, how large, and that nothing compiled is committed.

Run by ``make check``. Prints each fault with its file and ends with status 1 if there is one. It reads only what git
tracks, so that a developer's own files are left alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_SOURCE_LINES = 400
"""A source file that wants to be longer holds two ideas."""

MAX_DOC_COLUMNS = 100
"""Prose is read in a terminal beside code. Tables, links and fenced blocks cannot be wrapped and are exempt."""

MAX_FILE_BYTES = 512 * 1024
"""Larger files belong to a place that is not cloned with every checkout."""

LARGE_FILES_ALLOWED = ("src/evenflow/demo/assets/", "benchmarks/results/")
"""The embedded model, and raw samples that the documentation's figures are read from."""

UNWRAPPED_DOCS = ("docs/reference/", "docs/guides/vllm.md", "CHANGELOG.md")
"""Written from docstrings, which have the width of code; and one entry a line, so that branches merge."""

BINARY_SUFFIXES = frozenset({".whl", ".so", ".dll", ".dylib", ".exe", ".pyc", ".nbi", ".nbc", ".zip", ".gz", ".tar", ".egg"})
BINARY_FILES_ALLOWED = ("src/evenflow/demo/assets/", "docs/images/")


def tracked_files(root: Path) -> list[str]:
    """Paths, relative to ``root``, of the files that git tracks there or that wait to be added, unless ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return sorted(path for path in set(listed.stdout.split("\0")) if path and (root / path).is_file())


def faults(root: Path, paths: list[str]) -> Iterator[str]:
    """What is wrong with these files, one line for each fault."""
    for path in paths:
        content = (root / path).read_bytes()
        yield from _size_faults(path, content)
        if path.startswith("src/") and path.endswith(".py"):
            num_lines = content.count(b"\n")
            if num_lines > MAX_SOURCE_LINES:
                yield f"{path}: {num_lines} lines, and a source file may have {MAX_SOURCE_LINES}"
        if path.endswith(".md") and not path.startswith(UNWRAPPED_DOCS):
            yield from _wide_lines(path, content.decode())


def _size_faults(path: str, content: bytes) -> Iterator[str]:
    if len(content) > MAX_FILE_BYTES and not path.startswith(LARGE_FILES_ALLOWED):
        yield f"{path}: {len(content):,} bytes, and a file may have {MAX_FILE_BYTES:,}"
    is_binary = Path(path).suffix in BINARY_SUFFIXES or b"\0" in content[:8192]
    if is_binary and not path.startswith(BINARY_FILES_ALLOWED):
        yield f"{path}: a binary file; only {', '.join(BINARY_FILES_ALLOWED)} may hold some"


def _wide_lines(path: str, text: str) -> Iterator[str]:
    is_fenced = is_comment = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
            continue
        is_comment = (is_comment or line.startswith("<!--")) and "-->" not in line  # sources of figures; nobody reads them
        is_exempt = is_fenced or is_comment or line.lstrip().startswith("|") or "](" in line or "http" in line
        if len(line) > MAX_DOC_COLUMNS and not is_exempt:
            yield f"{path}:{number}: {len(line)} columns, and prose may have {MAX_DOC_COLUMNS}"


def main() -> int:
    """Check the checkout that this file belongs to; returns the exit status."""
    root = Path(__file__).parents[2]
    found = list(faults(root, tracked_files(root)))
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
