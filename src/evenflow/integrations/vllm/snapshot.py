"""Figures on their way from the engine's process, which has them, to the server's, which is asked for them: a small file.

vLLM's own statistics have no place for what a plug-in knows. The file lies in a folder that only this user may enter,
is written whole at most once a second and when the engine runs empty, and goes with its engine.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.base.files import write_whole

log = logging.getLogger("evenflow.integrations.vllm")

EVERY_S = 1.0


def figures_folder() -> Path:
    """The folder of this user's figures; made if it is not there. Raises ConfigError if it is somebody else's."""
    folder = Path(tempfile.gettempdir()) / f"evenflow-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ConfigError(f"{folder} is not a folder that this user alone may write to")
    return folder


def figures_path(folder: Path, instance: str, engine: int) -> Path:
    """Where engine number ``engine`` of one vLLM instance writes."""
    return folder / f"vllm-{instance}-{engine}.json"


class Publisher:
    """Writes figures. A file that cannot be written costs the metrics, never a request; it is logged once."""

    def __init__(self, instance: str, engine: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._path: Path | None = None
        self._due_s = 0.0
        try:
            self._path = figures_path(figures_folder(), instance, engine)
        except (OSError, ConfigError) as error:
            log.warning("no figures by client on /metrics: %s", error)

    def publish(self, read: Callable[[], dict[str, Any]], *, is_last: bool = False) -> None:
        """Write what ``read`` returns if it is time to; ``is_last``: in any case, because nothing will happen for a while."""
        now_s = self._clock()
        if self._path is None or (now_s < self._due_s and not is_last):
            return
        self._due_s = now_s + EVERY_S
        try:
            write_whole(self._path, json.dumps(read()))
        except (OSError, ValueError) as error:
            log.warning("no figures by client on /metrics: %s", error)
            self._path = None

    def close(self) -> None:
        """Take the file away."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def read_figures(folder: Path, instance: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of each engine of the instance, its number and its latest figures."""
    for path in sorted(folder.glob(f"vllm-{instance}-*.json")):
        try:
            yield int(path.stem.rpartition("-")[2]), json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue  # it has just gone
