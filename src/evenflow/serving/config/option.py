"""An option is declared once, as a field of a frozen dataclass: its name, kind, default, help and reason.

From that one declaration come the command line's flag and its ``--help``, the key of a configuration
file, the keyword of ``LLM(...)`` and the line of the reference page. ``read_options`` is called by the
dataclass where it is made, so a value is read and checked in the same way whoever gave it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.serving.config.kinds import Kind

_KEY = "option"


@dataclass(frozen=True, slots=True)
class Option:
    """Everything that is said of one option, but its value."""

    field: str
    """Name of the dataclass's field."""
    name: str
    """Name that people write, with underscores: ``--adapter-dir`` on the command line, ``adapter_dir`` in a file."""
    kind: Kind
    default: Any
    """Value without being told; ``dataclasses.MISSING`` if the option must be given."""
    help: str
    """What it does: one sentence, or two."""
    reason: str
    """Why it is there, or why the default is what it is; empty if the help says enough."""
    when_none: str
    """What is done when the value is None."""
    aliases: tuple[str, ...]
    """Other spellings, with underscores."""
    short: str | None
    """Further spelling on the command line alone, e.g. ``-tp``."""
    has_flag: bool
    """False: set by Python code only, or by another file, as the help says."""

    @property
    def flag(self) -> str:
        """Its flag on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def flags(self) -> tuple[str, ...]:
        """Every spelling on the command line, the documented one first."""
        others = tuple("--" + alias.replace("_", "-") for alias in self.aliases)
        return (self.flag, *others, *([self.short] if self.short else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Every spelling as a keyword or a key of a file: the documented one, the aliases, the field itself."""
        return tuple(dict.fromkeys((self.name, *self.aliases, self.field)))

    @property
    def is_required(self) -> bool:
        """True if there is no default."""
        return self.default is dataclasses.MISSING

    @property
    def default_text(self) -> str:
        """The default as a person would write it; empty if there is none to speak of."""
        if self.is_required:
            return ""
        if self.default is None:
            return self.when_none
        return self.kind.show(self.default)

    def read(self, value: Any) -> Any:
        """Return the typed value. None is taken where it is the default. Raises ConfigError, naming the option."""
        if value is None and self.default is None:
            return None
        try:
            return self.kind.read(value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{self.name} is {_short(value)}; allowed: {self.kind.allowed}") from None


def option(
    kind: Kind,
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    name: str | None = None,
    reason: str = "",
    when_none: str = "",
    aliases: Iterable[str] = (),
    short: str | None = None,
    has_flag: bool = True,
    default_factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare a field of a keyword-only dataclass as an option. See ``Option`` for the arguments."""
    said = {
        "kind": kind,
        "help": help,
        "name": name,
        "reason": reason,
        "when_none": when_none,
        "aliases": tuple(aliases),
        "short": short,
        "has_flag": has_flag,
    }
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata={_KEY: said})
    return dataclasses.field(default=default, metadata={_KEY: said})


def options_of(config_class: type) -> Mapping[str, Option]:
    """Return the options that a dataclass declares, by field, in order. Fields that are no options are left out."""
    found = {}
    for field in dataclasses.fields(config_class):
        said = field.metadata.get(_KEY)
        if said is None:
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found[field.name] = Option(field=field.name, default=default, **{**said, "name": said["name"] or field.name})
    return found


def read_options(config: Any) -> None:
    """Read every option of a dataclass that is being made: call it in ``__post_init__``. Raises ConfigError."""
    for field, declared in options_of(type(config)).items():
        object.__setattr__(config, field, declared.read(getattr(config, field)))


def options_by_name(*config_classes: type) -> dict[str, tuple[type, Option]]:
    """Return every option of these dataclasses by each of its spellings, with underscores."""
    found: dict[str, tuple[type, Option]] = {}
    for config_class in config_classes:
        for declared in options_of(config_class).values():
            for name in declared.names:
                assert name not in found, f"two options are called {name}"
                found[name] = config_class, declared
    return found


def fields_given(config_class: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return keyword arguments for ``config_class`` from values by any spelling of their options.

    ``where`` is who has these options, for messages. Raises ConfigError for a name that is no option, and
    for one that is given twice under different spellings.
    """
    known = options_by_name(config_class)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise unknown_option(name, (declared.name for declared in options_of(config_class).values()), where)
        field = known[name][1].field
        if field in found:
            raise ConfigError(f"{where} is told {known[name][1].name} twice; {name} is another name of it")
        found[field] = value
    return found


def unknown_option(name: str, known: Iterable[str], where: str) -> ConfigError:
    """Return the error for a name that is no option, with the names that are nearest to it."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    allowed = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(names)}"
    return ConfigError(f"{where} has no option {name}; {allowed}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


__all__ = ["Option", "fields_given", "option", "options_by_name", "options_of", "read_options", "unknown_option"]
