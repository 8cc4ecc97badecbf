"""``--config FILE``: options of a command in YAML, TOML or JSON, under the names of its long flags."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError

SUFFIXES = (".yaml", ".yml", ".toml", ".json")


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the file's keys, dashes as underscores, with their values.

    Raises ConfigError if the file cannot be read, is no table of names, or gives one option twice.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"--config is {path}; allowed: a file ending in {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = (
            _read_yaml(text) if suffix in (".yaml", ".yml") else tomllib.loads(text) if suffix == ".toml" else json.loads(text)
        )
    except (OSError, ValueError) as error:  # the errors of TOML, JSON and UTF-8 are ValueErrors
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if table is None:
        return {}
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise ConfigError(f"{path} holds no table; write one option a line, for example max-num-seqs: 32")
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.strip().removeprefix("--").replace("-", "_")
        if name in found:
            raise ConfigError(f"{path} gives {name} twice")
        found[name] = value
    return found


def _read_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError("reading YAML needs PyYAML: pip install pyyaml; a TOML file needs nothing") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
