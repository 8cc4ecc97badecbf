"""The page of the Operate part that says what each flag of ``vllm serve`` means to ``evenflow serve``."""

from __future__ import annotations

from collections.abc import Iterable

from evenflow.cli.serve_options import ServeOptions
from evenflow.cli.vllm_flag_table import SHORT_FLAGS, VLLM_FLAGS, FlagGroup
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.config.option import options_by_name
from evenflow.serving.server.server_config import ServerConfig

INTRO = """\
A command line, or a YAML file, that was written for `vllm serve` can be given to `evenflow serve` as
it is, with the folder of a model in place of its name on a hub. Underscores in flags, dotted keys of
JSON values, counts like 32K, and several keys after `--api-key` are understood. What a flag means is
decided by one question: would leaving it out change an answer, open a door, or lose what its user
counts on? Then it is honoured or refused. All other flags are taken, and named in the log once."""

NOTES = """\
Some defaults differ: `--host` is 127.0.0.1, `--max-lora-rank` 512, `--max-num-seqs` 16, and memory is
half of what is free. `--dtype half` is read as `auto`: the model is computed in bfloat16 where the
device is fast at it, else in float32. `VLLM_API_KEY` is read where `--api-key` is not given."""


def vllm_flags_page(names: tuple[str, ...]) -> str:
    """The page as Markdown. ``names``: vLLM's flags, with underscores; those that are options here are honoured."""
    ours = options_by_name(ServeOptions, ServerConfig, EngineConfig)
    honoured = [(name, ours[name][1]) for name in sorted(names) if name in ours]
    rows = [f"| `{_flag(name)}` | {_as(name, option.flag)} | {_cell(option.help)} |" for name, option in honoured]
    parts = [
        "# Command lines of vLLM",
        INTRO,
        NOTES,
        "## Honoured",
        "\n".join(["| flag | here | meaning |", "|---|---|---|", *rows]),
        "## Taken without effect",
        _groups(group for group in VLLM_FLAGS if not group.is_refused),
        "## Refused",
        "A value in brackets says what is done here anyway, and is taken.",
        _groups(group for group in VLLM_FLAGS if group.is_refused),
    ]
    return "\n\n".join(parts) + "\n"


def _groups(groups: Iterable[FlagGroup]) -> str:
    rows = [f"| {_names(group)} | {_cell(group.why)} |" for group in groups]
    return "\n".join(["| flags | why |", "|---|---|", *rows])


def _names(group: FlagGroup) -> str:
    names = [f"`{_flag(name)}`" for name in (*group.switches, *group.lists)]
    for name, neutral in group.values.items():
        short = f", `{SHORT_FLAGS[name]}`" if name in SHORT_FLAGS else ""
        shown = f"{neutral[0]} to {neutral[-1]}" if len(neutral) > 3 else ", ".join(neutral)
        names.append(f"`{_flag(name)}`{short}" + (f" ({shown})" if shown else ""))
    return ", ".join(names)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _as(name: str, flag: str) -> str:
    return "the same" if _flag(name) == flag else f"`{flag}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


__all__ = ["vllm_flags_page"]
