"""The flags of ``vllm serve`` that are no options here, as flags of ``evenflow serve`` all the same.

They are declared in the table beside this file. A command line or a file that was written for vLLM is taken:
flags that would change an answer are refused with their reason, all others are named in the log once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.cli.vllm_flag_table import SHORT_FLAGS, VLLM_FLAGS, FlagGroup
from evenflow.serving.config.kinds import AnyText, Kind, Names, Switch
from evenflow.serving.config.option import option


@dataclass(frozen=True, slots=True)
class ForeignFlag:
    """One flag of vLLM that is no option here."""

    name: str
    group: FlagGroup

    @property
    def kind(self) -> Kind:
        """What follows the flag."""
        if self.name in self.group.switches:
            return Switch()
        return Names("VALUE") if self.name in self.group.lists else AnyText()

    def is_refused(self, value: Any) -> bool:
        """True if the server may not start with this value."""
        if not self.group.is_refused or value is None:
            return False
        if self.name in self.group.switches:
            return bool(value)
        if self.name in self.group.lists:
            return len(value) > 0
        return str(value).strip().lower() not in self.group.values[self.name]


FOREIGN_FLAGS: Mapping[str, ForeignFlag] = {
    name: ForeignFlag(name, group)
    for group in VLLM_FLAGS
    for names in (group.switches, group.values, group.lists)
    for name in names
}
"""Every flag of the table, by name."""

VllmFlags: type = dataclasses.make_dataclass(
    "VllmFlags",
    [(name, Any, option(flag.kind, None, flag.group.why, short=SHORT_FLAGS.get(name))) for name, flag in FOREIGN_FLAGS.items()],
    frozen=True,
    kw_only=True,
)
"""The same flags as options, so that they are read from command lines and files like all others."""


def ignored_flags(given: Mapping[str, Any]) -> list[str]:
    """Return one line for every flag of ``given`` that is taken without effect: its name and the reason.

    Raises ConfigError with every reason if one or more of them are refused.
    """
    refused = [
        f"--{name.replace('_', '-')}{_shown(value)} is refused: {FOREIGN_FLAGS[name].group.why}"
        for name, value in given.items()
        if FOREIGN_FLAGS[name].is_refused(value)
    ]
    if refused:
        raise ConfigError("; ".join(refused))
    return [
        f"--{name.replace('_', '-')} ({FOREIGN_FLAGS[name].group.why})"
        for name in given
        if not FOREIGN_FLAGS[name].group.is_refused
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return ""
    return " " + (" ".join(value) if isinstance(value, tuple) else str(value))[:80]


__all__ = ["FOREIGN_FLAGS", "ForeignFlag", "VllmFlags", "ignored_flags"]
