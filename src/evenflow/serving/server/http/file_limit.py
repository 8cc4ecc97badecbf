"""How many files and connections this process may have open: raised as far as the system lets it."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("evenflow.server")

RESERVE = 256
"""Descriptors that are not connections: row files, sockets to the engine, the log, libraries."""


def fit_to_file_limit(max_connections: int) -> int:
    """Raise the soft limit on open files to what ``max_connections`` need; the connections that it leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + RESERVE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):
            pass
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max_connections
    left = max(soft - RESERVE, soft // 2, 1)
    log.warning("at most %d connections: only %d files may be open (ulimit -n), and %d were wanted", left, soft, wanted)
    return left
