"""Ray, imported when it is needed, and refused with the command that installs it when it is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from evenflow.base.errors import ConfigError


def import_ray() -> tuple[ModuleType, ModuleType]:
    """Return the modules ``ray`` and ``ray.serve``. Raises ConfigError without them."""
    try:
        return importlib.import_module("ray"), importlib.import_module("ray.serve")
    except ImportError as error:
        raise ConfigError(f"several engines on Ray need Ray Serve ({error}): pip install 'evenflow[ray]'") from None
