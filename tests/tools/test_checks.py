"""The checks of the tree find what they are for, and the tree passes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from checks.tree import MAX_FILE_BYTES, MAX_SOURCE_LINES, faults, tracked_files


def faults_of(tmp_path: Path, path: str, content: bytes) -> list[str]:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return list(faults(tmp_path, [path]))


@pytest.mark.parametrize(
    ("path", "content", "fault"),
    [
        ("src/evenflow/long.py", b"x = 1\n" * (MAX_SOURCE_LINES + 1), "401 lines"),
        ("profiler.whl", b"PK", "a binary file"),
        ("notes.txt", b"text\0more", "a binary file"),
        ("data.json", b" " * (MAX_FILE_BYTES + 1), "524,289 bytes"),
        ("docs/page.md", b"word " * 30, "docs/page.md:1: 150 columns"),
    ],
)
def test_what_does_not_belong_into_the_tree_is_found(tmp_path, path, content, fault):
    (found,) = faults_of(tmp_path, path, content)
    assert fault in found


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("src/evenflow/full.py", b"x = 1\n" * MAX_SOURCE_LINES),
        ("src/evenflow/demo/assets/model.safetensors", b"\0" * (MAX_FILE_BYTES + 1)),
        ("docs/page.md", b"```\n" + b"word " * 30 + b"\n```\n| " + b"cell | " * 30 + b"\n"),
    ],
)
def test_what_belongs_there_is_not(tmp_path, path, content):
    assert faults_of(tmp_path, path, content) == []


def test_only_what_git_would_take_is_looked_at(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "run.log").write_text("x")
    (tmp_path / "new.py").write_text("x")
    assert tracked_files(tmp_path) == [".gitignore", "new.py"]
