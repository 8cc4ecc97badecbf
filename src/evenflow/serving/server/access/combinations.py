"""Several adapters in one model name: ``a+b``, ``a*0.7+b*0.3``; and under which name the engine has it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import count

from evenflow.base.errors import AdapterRejected

PREFIX = "/combined/"
"""Begins the engine's names of combinations; no adapter's name may begin so, so that nobody can ask for them by these."""
MOST_KEPT = 256
_MOST_PARTS = 8

Part = tuple[str, float]
"""(name, weight)"""


def parse_combination(model: str) -> list[Part] | None:
    """The parts of ``model``; None if it names one adapter. Raises AdapterRejected for a weight that is none."""
    pieces = model.split("+")
    if len(pieces) < 2 and "*" not in model:
        return None
    if len(pieces) > _MOST_PARTS:
        raise AdapterRejected(repr(model[:80]), [f"it names {len(pieces)} adapters; allowed: {_MOST_PARTS}"])
    parts = []
    for piece in pieces:
        name, star, weight = piece.strip().rpartition("*")
        try:
            parts.append((name.strip(), float(weight)) if star else (weight.strip(), 1.0))
        except ValueError:
            raise AdapterRejected(repr(model[:80]), [f"{weight[:40]!r} is no weight; write NAME*0.5+NAME*0.5"]) from None
    return parts


def account_name(adapter: str | None, model: str) -> str:
    """The name that accounts keep for the engine's ``adapter``, asked for as ``model``; empty: the base model.

    A combination is ``a+b`` without its weights: the engine's name of it lasts no longer than the server, and weights are
    too many to add up by.
    """
    if adapter is None:
        return ""
    parts = parse_combination(model) if adapter.startswith(PREFIX) else None
    return adapter if parts is None else "+".join(name for name, _ in parts)


class Combinations:
    """Which combinations the engine has, the longest unused first. One event loop."""

    def __init__(self) -> None:
        self._names: OrderedDict[tuple[Part, ...], str] = OrderedDict()
        """By parts, each adapter by its digest: the engine's name."""
        self._numbers = count()

    def find(self, parts: Sequence[Part]) -> str | None:
        """The engine's name of the combination of these digests, if it has it."""
        key = tuple(parts)
        if key in self._names:
            self._names.move_to_end(key)
        return self._names.get(key)

    def new_name(self) -> str:
        """A name for the engine that was never given before."""
        return f"{PREFIX}{next(self._numbers)}"

    def add(self, parts: Sequence[Part], name: str) -> list[str]:
        """The engine has it now. Returns the names of those that it should forget."""
        self._names[tuple(parts)] = name
        return [self._names.popitem(last=False)[1] for _ in range(len(self._names) - MOST_KEPT)]

    def forget(self, name: str) -> None:
        """The engine has lost it. Nothing happens if it is not known."""
        for key in [key for key, known in self._names.items() if known == name]:
            del self._names[key]


__all__ = ["PREFIX", "Combinations", "parse_combination"]
