"""Declared options as flags of a command, and back: what was given on the command line and in a file.

This layer knows no option by name. Defaults stay where the options are declared: a flag that is not
given leaves no trace in the parsed arguments, so a file's value is the next to count, then the default.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.cli.config_file import read_config_file
from evenflow.serving.config.option import Option, options_by_name, options_of, unknown_option


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--config FILE``."""
    parser.add_argument(
        "--config",
        type=lambda text: Path(text).expanduser(),
        metavar="FILE",
        help="YAML, TOML or JSON file with options under the names of the long flags; the command line wins",
    )


def add_option_flags(parser: argparse.ArgumentParser, config_class: type, title: str, *, without: Container[str] = ()) -> None:
    """Add a group of flags, one for every option of ``config_class``. ``without``: fields that get none."""
    group = parser.add_argument_group(title)
    for declared in options_of(config_class).values():
        if declared.has_flag and declared.field not in without:
            group.add_argument(*declared.flags, **_argument(config_class, declared))


def options_given(args: argparse.Namespace, *config_classes: type) -> dict[type, dict[str, Any]]:
    """Return what the command line and the file of ``--config`` say, as keyword arguments of each class.

    Raises ConfigError for a file that cannot be read, a key that is no option, or a value that is not allowed.
    """
    given: dict[type, dict[str, Any]] = {config_class: {} for config_class in config_classes}
    known = options_by_name(*config_classes)
    path: Path | None = getattr(args, "config", None)
    for name, value in read_config_file(path).items() if path is not None else ():
        config_class, declared = known.get(name, (None, None))
        if config_class is None or declared is None or not declared.has_flag:
            names = (o.name for _, o in known.values() if o.has_flag)
            raise unknown_option(name, set(names), f"{path}: evenflow {args.command}")
        if declared.field in given[config_class]:
            raise ConfigError(f"{path} gives {declared.name} twice; {name} is another name of it")
        try:
            given[config_class][declared.field] = declared.read(value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    for config_class in config_classes:
        for field, declared in options_of(config_class).items():
            if hasattr(args, destination(config_class, field)):
                given[config_class][field] = declared.read(getattr(args, destination(config_class, field)))
    return given


def destination(config_class: type, field: str) -> str:
    """Name of an option among the parsed arguments."""
    return f"{config_class.__name__}.{field}"


def _argument(config_class: type, declared: Option) -> dict[str, Any]:
    """Keyword arguments of ``add_argument``."""
    words: dict[str, Any] = {
        "dest": destination(config_class, declared.field),
        "default": argparse.SUPPRESS,
        "help": _help(declared),
    }
    if declared.kind.form == "switch":
        return words | {"action": argparse.BooleanOptionalAction}
    words["metavar"] = declared.kind.metavar
    if declared.kind.form == "list":
        return words | {"action": "extend", "nargs": "+"}
    return words | {"type": _reader(declared)}


def _help(declared: Option) -> str:
    text = declared.help.rstrip(".")
    if declared.default_text:
        text += f" (default: {declared.default_text})"
    return text.replace("%", "%%")


def _reader(declared: Option) -> Callable[[str], str]:
    """Check a value where it stands, so that the usage is printed beside the error; it is read when it is used."""

    def check(text: str) -> str:
        try:
            declared.read(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


def parse_adapters(specs: Sequence[str]) -> dict[str, Path]:
    """Adapters from "name=folder" or vLLM's JSON {"name": ..., "path": ...}. Raises ConfigError."""
    adapters: dict[str, Path] = {}
    for spec in specs:
        if spec.lstrip().startswith("{"):
            try:
                entry = json.loads(spec)
                name, path = entry["name"], entry["path"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f'adapter {spec!r} is not {{"name": NAME, "path": DIR}}: {error}') from None
        else:
            name, separator, path = spec.partition("=")
            if not (separator and name and path):
                raise ConfigError(f"adapter {spec!r} is not understood; write NAME=DIR")
        if name in adapters:
            raise ConfigError(f"adapter name {name!r} is given twice")
        adapters[name] = Path(path).expanduser()
    return adapters
