"""The arguments behind a compressor's name, ``topk:0.1``: read strictly, with errors that say what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.base.errors import ConfigError


def arguments_of(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments after a name. Raises ConfigError for an empty one, as in ``ae:``."""
    cleaned = [argument.strip() for argument in arguments]
    if not all(cleaned):
        raise ConfigError(f"{name}: an argument after ':' is empty")
    return cleaned


def no_arguments(name: str, arguments: Sequence[str]) -> None:
    """Raise ConfigError if a compressor without arguments was given some."""
    if arguments:
        raise ConfigError(f"{name} takes no arguments; given: {':'.join(arguments)}")


def positive_int(name: str, text: str) -> int:
    """Return ``text`` as an integer of at least 1. Raises ConfigError."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(f"{name}:{text}: allowed: an integer of 1 or more")
    return value


def fraction(name: str, text: str) -> float:
    """Return ``text`` as a share above 0 and at most 1. Raises ConfigError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise ConfigError(f"{name}:{text}: allowed: a share above 0 and at most 1")
    return value
