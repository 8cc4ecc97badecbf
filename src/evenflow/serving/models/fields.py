"""The fields of a ``config.json``, read strictly: what is wrong is noted by name and value, and told all at once. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from evenflow.base.errors import ModelError

Found = TypeVar("Found")


class Fields:
    """Readers of ``raw`` that go on after a fault: they note it in ``reasons`` and return a value that fits the type.

    Whoever judges several fields together first looks whether ``reasons`` is empty.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.reasons: list[str] = []

    def refuse(self, reason: str) -> None:
        """Note a fault."""
        self.reasons.append(reason)

    def check(self) -> None:
        """Raise ModelError with all that was noted, if anything was."""
        if self.reasons:
            raise ModelError("; ".join(self.reasons))

    def noting(self, read: Callable[[], Found], otherwise: Found) -> Found:
        """What ``read`` returns; if it raises ModelError, that is noted and the answer is ``otherwise``."""
        try:
            return read()
        except ModelError as error:
            self.refuse(str(error))
            return otherwise

    def integer(self, name: str, default: int | None = None, most: int = (1 << 31) - 1) -> int:
        """An integer from 1 to ``most``. Null means that the field is missing, and ``default`` None that it may not be."""
        value = self.raw.get(name)
        value = default if value is None else value
        if value is None:
            self.refuse(f"{name} is missing")
            return 1
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            bound = "below 2^31" if most == (1 << 31) - 1 else f"at most {most}"
            self.refuse(f"{name} is {repr(value)[:40]}; allowed: an integer of 1 or more, {bound}")
            return 1
        return value

    def number(self, name: str, default: float) -> float:
        """A number above 0 that fp32 can hold."""
        value = self.raw.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 < value < 1e30:
            self.refuse(f"{name} is {repr(value)[:40]}; allowed: a number above 0")
            return default
        return float(value)

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """A number above 0; None if the field is null or 0, ``default`` if it is missing."""
        if name not in self.raw:
            return default
        return self.number(name, 1.0) if self.raw.get(name) not in (None, 0) else None

    def optional_id(self, name: str) -> int | None:
        """An integer or null."""
        value = self.raw.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        self.refuse(f"{name} is {value!r}; allowed: an integer or null")
        return None

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false; null means that it is missing."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.refuse(f"{name} is {value!r}; allowed: true or false")
            return default
        return value

    def choice(self, name: str, default: str, allowed: Mapping[str, Found]) -> Found:
        """What one of the names in ``allowed`` stands for."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in allowed:
            self.refuse(f"{name} is {value!r}; supported: {', '.join(repr(key) for key in allowed)}")
            return allowed[default]
        return allowed[value]

    def per_layer(self, name: str, num_layers: int, allowed: Sequence[Any]) -> list[Any] | None:
        """A list with one of ``allowed`` for each layer; None if the field is missing or null, or wrong."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != num_layers:
            self.refuse(f"{name} is {repr(value)[:80]}; allowed: a list of num_hidden_layers ({num_layers}) entries")
            return None
        for entry in value:
            if isinstance(entry, list | dict) or entry not in allowed:
                self.refuse(f"{name} holds {repr(entry)[:40]}; supported: {', '.join(repr(one) for one in allowed)}")
                return None
        return value


__all__ = ["Fields"]
