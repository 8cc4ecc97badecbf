"""Generated pages hold what the code says, and nothing public is missing from them."""

from __future__ import annotations

import dataclasses
import re

from evenflow.base import errors
from evenflow.cli.main import build_parser
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.config.option import options_of
from evenflow.serving.server.http import error_answers
from evenflow.serving.server.server_config import ServerConfig
from reference.__main__ import DOCS, stale
from reference.commands import arguments, commands
from reference.environment import GIVEN, READ, variables_read
from reference.http_api import document, routes_of
from reference.markdown import cell, field_docstrings
from reference.python_api import PACKAGES, public_names
from reference.rooms import SOURCES


def test_no_generated_page_is_stale():
    assert sorted(stale()) == [], "run `make reference`"


def test_a_page_that_differs_is_stale(tmp_path):
    (tmp_path / "same.md").write_text("a")
    (tmp_path / "other.md").write_text("b")
    pages = {"same.md": lambda: "a", "other.md": lambda: "a", "new.md": lambda: "a"}
    assert sorted(stale(pages, tmp_path)) == ["new.md", "other.md"]


def test_every_command_and_flag_is_listed():
    text = (DOCS / "reference/cli.md").read_text()
    for name, parser in commands(build_parser()):
        section = text.split(f"## `{name}`\n")[1].split("\n## ")[0]
        for action in arguments(parser):
            for spelling in action.option_strings:
                assert f"`{spelling}`" in section, (name, spelling)


def test_every_option_is_listed():
    text = (DOCS / "reference/configuration.md").read_text()
    for class_ in (EngineConfig, ServerConfig):
        assert [name for name, option in options_of(class_).items() if f"| `{option.name}` |" not in text] == []


def test_every_route_is_listed():
    text = (DOCS / "reference/http.md").read_text()
    assert [path for path, method, _ in routes_of(document()) if f"`{method.upper()} {path}`" not in text] == []


def test_every_public_name_is_listed():
    text = (DOCS / "reference/python.md").read_text()
    for package in PACKAGES:
        section = text.split(f"\n## `{package}`\n")[1].split("\n## ")[0]
        assert [name for name in public_names(package) if f"### `{name}`" not in section] == []


def test_every_variable_is_listed():
    assert variables_read() - set(READ) == set()
    text = (DOCS / "reference/environment.md").read_text()
    assert [name for name in {**READ, **GIVEN} if f"`{name}`" not in text] == []


def test_every_module_is_in_its_room_on_the_architecture_page():
    text = (DOCS / "architecture.md").read_text()
    for file in sorted(SOURCES.rglob("*.py")):
        if file.name != "__init__.py":
            room = file.parent.relative_to(SOURCES.parent).as_posix()
            section = text.split(f"### `{room}/`\n")[1].split("\n### ")[0]
            assert f"| `{file.name}` | " in section, file
            assert f"| `{file.name}` |  |" not in section, f"{file} has no docstring"


def test_every_error_code_is_explained():
    text = (DOCS / "operate/troubleshooting.md").read_text()
    explained = {
        (int(status), code.strip("`")) for status, code in re.findall(r"^\| (\d+) \| (\S+) \|", text, flags=re.MULTILINE)
    }
    answered = {(status, code or "none") for status, _, code in error_answers._STATUS.values()}
    assert answered | {(500, "none")} == explained
    assert issubclass(errors.ServerFull, errors.EvenFlowError)


def test_bars_and_tags_do_not_break_a_table():
    assert cell("a | b\n <tag> `x<y>`") == "a \\| b &lt;tag> `x<y>`"


def test_docstrings_of_fields_are_found():
    @dataclasses.dataclass
    class Unknown:
        x: int = 0

    assert field_docstrings(Unknown) == {}
    from evenflow.serving.core.sampling import SamplingParams

    assert field_docstrings(SamplingParams)["temperature"] == "0 is greedy."
