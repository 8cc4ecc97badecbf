"""The address that Ray Serve's own commands are given: ``serve run evenflow.integrations.ray:app model=DIR``.

Only that. What it builds lies in ``evenflow.cluster``, and how its arguments are read in ``evenflow.cli.ray``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def app(arguments: Mapping[str, Any]) -> Any:  # Any: ray.serve.Application
    """Application builder for Ray Serve: the options of ``evenflow ray serve``, dashes or underscores, ``model`` among them.

    Raises ConfigError for what cannot be served, and without Ray.
    """
    from evenflow.cli.ray import application

    return application(arguments)
