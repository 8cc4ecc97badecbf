"""Declared options as flags of a command, and back: what was given on the command line and in a file.

This layer knows no option by name. Defaults stay where the options are declared: a flag that is not
given leaves no trace in the parsed arguments, so a file's value is the next to count, then the default.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
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


def add_option_flags(parser: argparse.ArgumentParser, config_class: type, title: str, *, is_hidden: bool = False) -> None:
    """Add a group of flags, one for every option of ``config_class``. ``is_hidden``: ``--help`` does not show them."""
    group = parser.add_argument_group(title)
    for declared in options_of(config_class).values():
        if declared.has_flag:
            words = _argument(config_class, declared)
            group.add_argument(*declared.flags, **(words | {"help": argparse.SUPPRESS} if is_hidden else words))


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


def parse_adapters(specs: Sequence[str]) -> dict[str, str | Path]:
    """Adapters from NAME=DIR, vLLM's JSON object {"name": ..., "path": ...} or a JSON list of those. Raises ConfigError."""
    adapters: dict[str, str | Path] = {}
    for name, path in (pair for spec in specs if spec for pair in _adapters_of(spec)):
        if name in adapters:
            raise ConfigError(f"adapter name {name!r} is given twice")
        adapters[name] = path if "://" in path else Path(path).expanduser()
    return adapters


def _adapters_of(spec: str) -> Iterator[tuple[str, str]]:
    """(name, folder) pairs of one word of the command line."""
    if not spec.lstrip().startswith(("{", "[")):
        name, separator, path = spec.partition("=")
        if not (separator and name and path):
            raise ConfigError(f"adapter {spec!r} is not understood; write NAME=DIR")
        yield name, path
        return
    try:
        entries = json.loads(spec)
        for entry in entries if isinstance(entries, list) else [entries]:
            unknown = sorted(set(entry) - {"name", "path", "base_model_name", "is_3d_lora_weight"})
            if unknown:
                raise ValueError(f"it has no field {unknown[0]}")
            name, path = entry["name"], entry["path"]
            if not (isinstance(name, str) and isinstance(path, str) and name and path):
                raise ValueError("name and path are texts")
            yield name, path
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'adapter {spec!r} is not {{"name": NAME, "path": DIR}}, or a list of those: {error}') from None
