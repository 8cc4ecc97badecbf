"""vLLM's plug-in point for statistics: puts the series by client and adapter on its /metrics. Loaded by its entry point.

vLLM loads it in the server's process whenever EvenFlow is installed. Unless a scheduler of EvenFlow's was chosen it
does nothing. With several API servers (--api-server-count) vLLM serves a registry of its own making, which shows none
of these series.
"""

from __future__ import annotations

import logging
from typing import Any

from prometheus_client import REGISTRY
from vllm.v1.metrics.loggers import StatLoggerBase

from evenflow.base.errors import ConfigError
from evenflow.integrations.vllm.series import ClientSeries
from evenflow.integrations.vllm.snapshot import figures_folder, read_figures

log = logging.getLogger("evenflow.integrations.vllm")


class ClientStatLogger(StatLoggerBase):
    """Made once per engine; the first one registers the series of all engines of its instance."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        chosen = vllm_config.scheduler_config.scheduler_cls
        name = chosen if isinstance(chosen, str) else f"{getattr(chosen, '__module__', '')}."
        if engine_index != 0 or not name.startswith("evenflow."):
            return
        instance = vllm_config.instance_id
        try:
            folder = figures_folder()
            REGISTRY.register(ClientSeries(lambda: read_figures(folder, instance)))
        except (OSError, ConfigError, ValueError) as error:
            log.warning("no figures by client on /metrics: %s", error)

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the scheduler has the figures."""

    def log_engine_initialized(self) -> None:
        """Nothing."""
