"""The guide to adding a model shows files as they are in the tree, where a contract runs them; its other code runs here."""

from __future__ import annotations

import re
from typing import Any

import pytest
from executed_pages import DOCS

from evenflow.serving.models.registry import FAMILIES

BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "extend/model.md").read_text(), flags=re.DOTALL)


def test_the_code_that_the_guide_adds_is_what_is_there():
    shown = [block.split("\n", maxsplit=1) for block in BLOCKS if block.startswith("# ")]
    assert len(shown) == 3
    for where, code in shown:
        assert code in (DOCS.parent / where.removeprefix("# ")).read_text(), where
    assert "HyperCLOVAXForCausalLM" in FAMILIES


def test_the_example_without_a_download_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in BLOCKS if not block.startswith("# "))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["config"].architecture == "Qwen3ForCausalLM"
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_is_on_the_page_of_models(architecture):
    assert f"`{architecture}`" in (DOCS / "operate/models.md").read_text()
