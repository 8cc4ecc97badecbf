"""`make papers`: every command is one that exists, and the page of the papers names it."""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from evenflow.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("papers", ROOT / "benchmarks" / "papers.py")
assert _SPEC is not None
assert _SPEC.loader is not None
papers = importlib.util.module_from_spec(_SPEC)
sys.modules["papers"] = papers
_SPEC.loader.exec_module(papers)


@pytest.mark.parametrize("step", papers.STEPS, ids=lambda step: f"{step.paper}-{step.name}")
def test_every_command_is_understood_and_documented(step, tmp_path):
    assert f"`{step.paper}-{step.name}`" in (ROOT / "docs" / "papers.md").read_text()
    words = step.words(tmp_path, tmp_path / "trace.csv")
    if words[1] == "-m":
        assert isinstance(build_parser().parse_args(words[3:]), argparse.Namespace)
        return
    recipe = Path(words[1]).read_text()
    for flag in (word for word in words[2:] if word.startswith("--")):
        assert re.search(rf'"{flag}"', recipe), f"{words[1]} has no {flag}"


def test_a_step_without_its_trace_is_left_out(tmp_path):
    (step,) = (step for step in papers.STEPS if "TRACE" in step.command)
    assert step.words(tmp_path, None) == []
