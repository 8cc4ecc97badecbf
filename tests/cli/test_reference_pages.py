"""The generated pages are complete: every option, every flag of vLLM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from evenflow.serving.config.option import options_of
from reference.declared_options import SECTIONS, options_page
from reference.vllm_flags import vllm_flags_page

NAMES = tuple(line.split()[0] for line in (Path(__file__).parent / "vllm_serve_flags.txt").read_text().splitlines()[1:])


@pytest.mark.parametrize("config_class", [config_class for _, config_class, _ in SECTIONS])
def test_every_field_stands_in_the_page_of_options(config_class):
    rows = [line for line in options_page().splitlines() if line.startswith("|")]
    for field in dataclasses.fields(config_class):
        declared = options_of(config_class)[field.name]
        row = next(line for line in rows if f"`{declared.flag if declared.has_flag else declared.field}`" in line)
        assert declared.help.replace("|", "\\|") in row
        assert row.count(" | ") == 3


def test_every_flag_of_vllm_stands_in_its_page():
    page = vllm_flags_page(NAMES)
    missing = [name for name in NAMES if f"`--{name.replace('_', '-')}`" not in page]
    assert set(missing) <= {"config", "api_key", "allowed_origins"}, "the doors' options come with the server"
    assert "| `--block-size` | `--page-tokens` |" in page
    assert "| `--trust-remote-code` | no code" in page
