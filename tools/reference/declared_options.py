"""The reference of declared options: every option of the engine, the server and ``evenflow serve``, by all its names."""

from __future__ import annotations

from evenflow.cli.serve_options import ServeOptions
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.config.option import Option, options_of
from evenflow.serving.server.server_config import ServerConfig

SECTIONS: tuple[tuple[str, type, str], ...] = (
    ("Engine", EngineConfig, "Taken by `evenflow serve`, `evenflow generate` and `LLM(...)`."),
    ("Server", ServerConfig, "Taken by `evenflow serve`."),
    ("What is served", ServeOptions, "Taken by `evenflow serve`."),
)

INTRO = """\
An option has one name everywhere: `--max-num-seqs` on the command line, `max-num-seqs` (or
`max_num_seqs`) in the file of `--config`, `max_num_seqs` for `LLM(...)`. Sizes are written like 2GiB,
counts like 4096, 4k (4,000) or 4K (4,096); `~` in a path is the home folder. The command line goes
before the file, the file before the default."""


def options_page() -> str:
    """The page as Markdown: one section for each class, one row for each option."""
    parts = ["# Options", INTRO]
    for title, config_class, about in SECTIONS:
        rows = [_row(declared) for declared in options_of(config_class).values()]
        parts += [f"## {title}", about, "\n".join(["| option | values | default | meaning |", "|---|---|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def _row(declared: Option) -> str:
    names = ", ".join(f"`{flag}`" for flag in declared.flags) if declared.has_flag else f"`{declared.field}` (Python only)"
    unit = f" ({declared.kind.unit})" if declared.kind.unit and declared.kind.unit not in declared.kind.allowed else ""
    default = "required" if declared.is_required else declared.default_text
    meaning = f"{declared.help} {declared.reason}".strip()
    cells = (names, declared.kind.allowed + unit, default, meaning)
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"


__all__ = ["SECTIONS", "options_page"]
