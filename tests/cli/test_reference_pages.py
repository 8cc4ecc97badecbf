"""The pages of options and of vLLM's flags are complete."""

from __future__ import annotations

import dataclasses

import pytest

from evenflow.serving.config.option import options_of
from reference.configuration import CLASSES, configuration_page
from reference.vllm_flags import vllm_flags, vllm_flags_page


@pytest.mark.parametrize("config_class", [config_class for _, config_class in CLASSES])
def test_every_field_stands_in_the_page_of_the_configuration(config_class):
    rows = [line for line in configuration_page().splitlines() if line.startswith("|")]
    for field in dataclasses.fields(config_class):
        declared = options_of(config_class)[field.name]
        assert any(f"`{declared.name}`" in row and declared.help.split("|")[0] in row.replace("&lt;", "<") for row in rows)


def test_every_flag_of_vllm_stands_in_its_page():
    page = vllm_flags_page()
    assert [name for name in vllm_flags() if f"`--{name.replace('_', '-')}`" not in page] == []
    assert "| `--block-size` | `--page-tokens` |" in page
    assert "| `--trust-remote-code` | no code" in page
