"""What the sub-commands of ``evenflow mcbench`` share: lines that appear at once, and files that can be written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.report.page import write_whole


def check_folder(path: str | None) -> None:
    """Raise ConfigError, before any work is done, if a file could not be written there."""
    if path and not (os.path.isdir(Path(path).parent) and os.access(Path(path).parent, os.W_OK)):
        raise ConfigError(f"cannot write {path}: there is no folder {Path(path).parent} that can be written to")


def say(text: str) -> None:
    print(text, flush=True)


def say_indented(text: str) -> None:
    say(f"    {text}")


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())
