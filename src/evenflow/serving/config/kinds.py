"""Kinds of option values: how each is read from a command line, a file or Python, and shown in a page.

A kind reads text and native values alike, so that ``--memory 2GiB``, ``memory: 2GiB`` in a file and
``LLM(memory="2GiB")`` mean the same. It knows nothing of the option that uses it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from evenflow.base.errors import ConfigError
from evenflow.base.memory_size import format_size, parse_size

Form = Literal["value", "list", "switch"]
"""What follows the flag: one word, one word or more, or nothing (the flag is negated with ``--no-``)."""

_COUNT = re.compile(r"(-?\d+)|(\d+(?:\.\d+)?)([kmgt])|(\d+)([KMGT])")


class Kind(Protocol):
    """How the values of an option are read and shown."""

    @property
    def form(self) -> Form:
        """What follows the flag."""
        ...

    @property
    def metavar(self) -> str:
        """Placeholder of the value in a page of help."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the value once it is read, empty if it has none."""
        ...

    @property
    def allowed(self) -> str:
        """Which values are allowed, for messages: what follows "allowed: "."""
        ...

    def read(self, value: Any) -> Any:
        """Return the typed value. Raises ValueError for one that is not allowed."""
        ...

    def show(self, value: Any) -> str:
        """Return a value as one would write it on the command line."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """Any text. ``synonyms``: other spellings with what they stand for."""

    allowed: str = "a text"
    metavar: str = "NAME"
    synonyms: Mapping[str, str] = field(default_factory=dict)
    form: Form = "value"
    unit: str = ""

    def read(self, value: Any) -> str:
        """See ``Kind.read``."""
        if not isinstance(value, str):
            raise ValueError
        return self.synonyms.get(value, value)

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return str(value)


@dataclass(frozen=True, slots=True)
class AnyText:
    """Whatever is given, as text: numbers, switches and tables of a file too. For options that nobody reads."""

    allowed: str = "anything"
    metavar: str = "VALUE"
    unit: str = ""
    form: Form = "value"

    def read(self, value: Any) -> str:
        """See ``Kind.read``."""
        return value if isinstance(value, str) else json.dumps(value, default=str)

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return str(value)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of ``names``. ``synonyms``: other spellings with the name they stand for."""

    names: tuple[str, ...]
    synonyms: Mapping[str, str] = field(default_factory=dict)
    form: Form = "value"
    unit: str = ""

    @property
    def metavar(self) -> str:
        """See ``Kind.metavar``."""
        return "{" + ",".join(self.names) + "}"

    @property
    def allowed(self) -> str:
        """See ``Kind.allowed``."""
        return ", ".join(self.names)

    def read(self, value: Any) -> str:
        """See ``Kind.read``."""
        name = self.synonyms.get(value, value) if isinstance(value, str) else value
        if name not in self.names:
            raise ValueError
        return str(name)

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return str(value)


@dataclass(frozen=True, slots=True)
class Count:
    """An integer from ``least`` to ``most``; 4k is 4,000 and 4K is 4,096. ``none_words`` are read as None."""

    least: int = 1
    most: int | None = None
    unit: str = ""
    none_words: tuple[str, ...] = ()
    metavar: str = "N"
    form: Form = "value"

    @property
    def allowed(self) -> str:
        """See ``Kind.allowed``."""
        words = "".join(f", or {word}" for word in self.none_words)
        return (f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}") + words

    def read(self, value: Any) -> int | None:
        """See ``Kind.read``."""
        if str(value) in self.none_words:
            return None
        number = _integer_of(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError
        if number < self.least or (self.most is not None and number > self.most):
            raise ValueError
        return number

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return str(value)


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number from ``least``, or ``above`` a bound, to ``most``."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    unit: str = ""
    metavar: str = "X"
    form: Form = "value"

    @property
    def allowed(self) -> str:
        """See ``Kind.allowed``."""
        low = f"{self.least:g} or more" if self.least is not None else f"above {self.above:g}" if self.above is not None else ""
        high = f"at most {self.most:g}" if self.most is not None else ""
        return ", ".join(part for part in (low, high) if part) or "a number"

    def read(self, value: Any) -> float:
        """See ``Kind.read``."""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
        is_in_range = (
            math.isfinite(number)
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
        )
        if not is_in_range:
            raise ValueError
        return number

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return f"{value:g}"


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes, written as 2GiB, 512MB or a number; ``may_be_zero`` allows 0."""

    may_be_zero: bool = False
    metavar: str = "SIZE"
    unit: str = "bytes"
    form: Form = "value"

    @property
    def allowed(self) -> str:
        """See ``Kind.allowed``."""
        return "a size like 2GiB, 512MB or a number of bytes, " + ("0 or more" if self.may_be_zero else "above 0")

    def read(self, value: Any) -> int:
        """See ``Kind.read``."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError
        if self.may_be_zero and str(value).strip() == "0":
            return 0
        try:
            return parse_size(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return format_size(value).replace(" ", "") if value else "0"


@dataclass(frozen=True, slots=True)
class Switch:
    """On or off: ``--flag`` and ``--no-flag``; true and false in a file."""

    metavar: str = ""
    allowed: str = "true or false"
    unit: str = ""
    form: Form = "switch"

    def read(self, value: Any) -> bool:
        """See ``Kind.read``."""
        if not isinstance(value, bool):
            raise ValueError
        return value

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return "on" if value else "off"


@dataclass(frozen=True, slots=True)
class PathTo:
    """A path; a leading ``~`` stands for the home folder. It need not exist yet."""

    metavar: str = "DIR"
    allowed: str = "a path"
    unit: str = ""
    form: Form = "value"

    def read(self, value: Any) -> Path:
        """See ``Kind.read``."""
        if not isinstance(value, str | Path) or "\0" in str(value):
            raise ValueError
        try:
            return Path(value).expanduser()
        except RuntimeError as error:  # there is no such user, or no home folder
            raise ValueError from error

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return str(value)


@dataclass(frozen=True, slots=True)
class Names:
    """Texts, one after the other, or in one JSON list as some launchers write them. Read as a tuple."""

    metavar: str = "NAME"
    allowed: str = "one text or more"
    unit: str = ""
    form: Form = "list"

    def read(self, value: Any) -> tuple[str, ...]:
        """See ``Kind.read``."""
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, Sequence):
            raise ValueError
        found: list[str] = []
        for word in words:
            if isinstance(word, Mapping):
                word = json.dumps(dict(word))
            if not isinstance(word, str):
                raise ValueError
            listed = json.loads(word) if word.lstrip().startswith("[") else [word]
            # An object stays the text that it was: {"name": ..., "path": ...} is read by who takes such names.
            found.extend(json.dumps(entry) if isinstance(entry, dict) else entry for entry in listed)
        if not all(isinstance(entry, str) for entry in found):
            raise ValueError
        return tuple(found)

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return " ".join(value)


@dataclass(frozen=True, slots=True)
class Table:
    """A JSON object, or a table of the file. What its entries may be is said by who uses it."""

    allowed: str = "a JSON object"
    metavar: str = "JSON"
    unit: str = ""
    form: Form = "value"

    def read(self, value: Any) -> dict[str, Any]:
        """See ``Kind.read``."""
        table = json.loads(value) if isinstance(value, str) else value
        if not isinstance(table, Mapping) or not all(isinstance(key, str) for key in table):
            raise ValueError
        return dict(table)

    def show(self, value: Any) -> str:
        """See ``Kind.show``."""
        return json.dumps(value) if value else ""


def _integer_of(text: str) -> int:
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError
    plain, decimal, decimal_unit, binary, binary_unit = match.groups()
    if plain is not None:
        return int(plain)
    if decimal is not None:
        return round(float(decimal) * 1000 ** (1 + "kmgt".index(decimal_unit)))
    return int(binary) << 10 * (1 + "KMGT".index(binary_unit))


__all__ = ["AnyText", "Choice", "Count", "Form", "Kind", "Names", "Number", "PathTo", "Size", "Switch", "Table", "Text"]
