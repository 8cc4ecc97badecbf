"""The reference of the configuration: every option of the engine and the server, from its one declaration."""

from __future__ import annotations

from typing import Any

from evenflow.cli.serve_options import ServeOptions
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.config.option import Option, options_of
from evenflow.serving.server.server_config import ServerConfig
from reference.markdown import cell, code, first_paragraph, page, prose, table

INTRO = """\
Every option of an engine and of a server. It is declared once; the flag, the key of a file for
`--config`, the keyword of `LLM(...)` and this page come from there. A key is the flag without its
dashes, and dashes within it may be underscores. The command line wins over the file, the file over
the default."""

CLASSES: tuple[tuple[str, type], ...] = (
    ("Engine", EngineConfig),
    ("Server", ServerConfig),
    ("What `evenflow serve` serves", ServeOptions),
)
"""Title -> the class whose options are listed; the engine's are also the keywords of ``LLM``."""


def configuration_page() -> str:
    """The page, one section for each class of settings."""
    return page("Configuration", INTRO, *(_section(title, class_) for title, class_ in CLASSES))


def _section(title: str, class_: Any) -> str:
    rows = [_row(declared) for declared in options_of(class_).values()]
    header = ["option", "flags", "allowed", "default", "what it does, and why"]
    return f"## {title}\n\n{prose(first_paragraph(class_))}\n\n" + table(header, rows)


def _row(declared: Option) -> list[str]:
    flags = ", ".join(code(flag) for flag in declared.flags) if declared.has_flag else "no flag"
    default = "required" if declared.is_required else cell(declared.default_text)
    why = f" {declared.reason}" if declared.reason else ""
    return [code(declared.name), flags, cell(declared.kind.allowed), default, cell(f"{declared.help}{why}")]
