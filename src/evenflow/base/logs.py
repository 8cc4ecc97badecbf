"""How log lines look, in every process of a server."""

from __future__ import annotations

import logging

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


def configure_logging(level: str, who: str = "") -> None:
    """Send log lines of ``level`` ("info") and above to standard error, each message behind ``who``."""
    line = LOG_FORMAT.replace("%(message)s", who.replace("%", "%%") + "%(message)s")
    logging.basicConfig(level=level.upper(), format=line, datefmt="%H:%M:%S")
