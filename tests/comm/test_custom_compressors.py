"""Compressors from outside of the package: by MODULE:CLASS, by entry point, in ranks and on the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import evenflow
from evenflow.base.errors import ConfigError, RegistryError
from evenflow.comm import Compressor, catalogue, get_compressor

GUIDE = Path(evenflow.__file__).parents[2] / "docs" / "extend" / "compressor.md"


def guide_module(folder: Path, name: str) -> str:
    """Write the guide's own example as a module into ``folder`` and return its name."""
    block = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert block is not None
    lines = block.group(1).splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    (folder / f"{name}.py").write_text("\n".join(line[indent:] for line in lines) + "\n")
    return name


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(tmp_path)
    return guide_module(tmp_path, f"halves_{tmp_path.name.replace('-', '_')}")


def test_the_guides_compressor_is_found_by_its_module(halves: str) -> None:
    for spec in (f"{halves}:Halves", f"{halves}:halves", f"ef({halves}:Halves)"):
        compressor = get_compressor(spec)
        assert isinstance(compressor, Compressor)
        assert compressor.spec == spec
        x = torch.arange(7.0)
        message = compressor.encode(x)
        assert message.numel() * message.element_size() == compressor.wire_plan(x.shape, x.dtype).payload_bytes == 16
        assert compressor.decode(message, x.shape, x.dtype).tolist() == [0, 0, 2, 2, 4, 4, 6]
        assert type(compressor.replica()) is type(compressor)


def test_an_installed_package_offers_compressors(halves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [EntryPoint(name, f"{halves}:halves", catalogue.ENTRY_POINTS) for name in ("halves", "none")]
    monkeypatch.setattr(catalogue, "entry_points", lambda group: offered if group == catalogue.ENTRY_POINTS else [])
    assert catalogue.installed_compressors() == {"halves": f"{halves}:halves"}, "a built-in name wins"
    assert get_compressor("halves").spec == "halves"


def test_what_is_no_compressor_is_refused_by_name(halves: str) -> None:
    for spec, words in (
        ("int5", "unknown compressor 'int5'; known: .*int8-g32.*MODULE:CLASS"),
        ("no_such_module:Halves", "the module no_such_module cannot be imported"),
        (f"{halves}:Thirds", f"the module {halves} has no Thirds"),
        ("int9:4", "the module int9 cannot be imported|unknown compressor 'int9'"),
    ):
        with pytest.raises(RegistryError, match=words):
            get_compressor(spec)
    with pytest.raises(ConfigError, match="makes a OrderedDict; allowed: a subclass of"):
        get_compressor("collections:OrderedDict")
    with pytest.raises(ConfigError, match=r"Halves:3: .*argument"):
        get_compressor(f"{halves}:Halves:3")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_guides_compressor_runs_in_ranks_from_the_command_line(tmp_path: Path) -> None:
    """Where the command is given, with no path set: in virtual ranks, in real ones, and in the workers of a suite."""
    guide_module(tmp_path, "my_halves")
    small = ["--seeds", "1", "--steps", "2", "--batch", "8", "--hidden", "32", "--num-layers", "2", "--timed-steps", "2"]
    for how in (["--emulate"], []):
        run = ["mcbench", "run", "--tp", "2", "--compress", "tp=my_halves:Halves/one-shot"]
        words = [*run, *small, *how, "--json", "out.json"]
        code = f"import sys; sys.path[:] = filter(None, sys.path); from evenflow.cli.main import main; sys.exit(main({words}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "out.json").read_text())
        assert result["bytes_per_step"]["tp.forward"]["planned"] == result["bytes_per_step"]["tp.forward"]["counted"] > 0
