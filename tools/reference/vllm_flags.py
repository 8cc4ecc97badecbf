"""The page of the Operate part that says what each flag of ``vllm serve`` means to ``evenflow serve``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from evenflow.cli.serve_options import ServeOptions
from evenflow.cli.vllm_flag_table import SHORT_FLAGS, VLLM_FLAGS, FlagGroup
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.config.option import options_by_name
from evenflow.serving.server.server_config import ServerConfig
from reference.markdown import cell, code, page, table

FLAGS_FILE = Path(__file__).parent / "vllm_serve_flags.txt"
"""Names of vLLM's flags, with what follows each."""

INTRO = """\
A command line, or a YAML file, that was written for `vllm serve` can be given to `evenflow
serve` as it is, with the folder of a model in place of its name on a hub. Underscores in flags,
dotted keys of JSON values, counts like 32K, and several keys after `--api-key` are understood.
What a flag means is decided by one question: would leaving it out change an answer, open a door,
or lose what its user counts on? Then it is honoured or refused. All other flags are taken, and
named in the log once.

Some defaults differ: `--max-lora-rank` is 512, `--max-num-seqs` 16, the server listens at
127.0.0.1, and memory is half of what is free. `--dtype half` is read as `auto`: the model is
computed in bfloat16 where the device is fast at it, else in float32. `VLLM_API_KEY` is read
where no `--api-key` is given. `max_new_tokens` of `--override-generation-config` is a default,
not a limit."""


def vllm_flags() -> dict[str, str]:
    """Flags of ``vllm serve``, with underscores, and what follows each: value, list or switch."""
    lines = FLAGS_FILE.read_text().splitlines()[1:]
    return dict(line.split() for line in lines)


def vllm_flags_page() -> str:
    """The page: what is honoured, what is taken without effect, what is refused."""
    ours = options_by_name(ServeOptions, ServerConfig, EngineConfig)
    honoured = [
        [
            code(_flag(name)),
            "the same" if _flag(name) == ours[name][1].flag else code(ours[name][1].flag),
            cell(ours[name][1].help),
        ]
        for name in sorted(vllm_flags())
        if name in ours
    ]
    honoured.append([code("--config"), "the same", "A file with these options; TOML and JSON are read too."])
    return page(
        "Command lines of vLLM",
        INTRO,
        "## Honoured",
        table(["flag", "here", "meaning"], honoured),
        "## Taken without effect",
        _groups(group for group in VLLM_FLAGS if not group.is_refused),
        "## Refused",
        "A value in brackets says what is done here anyway, and is taken.",
        _groups(group for group in VLLM_FLAGS if group.is_refused),
    )


def _groups(groups: Iterable[FlagGroup]) -> str:
    return table(["flags", "why"], ([_names(group), cell(group.why)] for group in groups))


def _names(group: FlagGroup) -> str:
    names = [code(_flag(name)) for name in (*group.switches, *group.lists)]
    for name, neutral in group.values.items():
        short = f", {code(SHORT_FLAGS[name])}" if name in SHORT_FLAGS else ""
        shown = f"{neutral[0]} to {neutral[-1]}" if len(neutral) > 3 else ", ".join(neutral)
        names.append(code(_flag(name)) + short + (f" ({shown})" if shown else ""))
    return ", ".join(names)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


__all__ = ["vllm_flags", "vllm_flags_page"]
