"""Fair scheduling between clients inside vLLM, in two flags.

    vllm serve MODEL --scheduler-cls evenflow.integrations.vllm.FairScheduler \\
                     --middleware evenflow.integrations.vllm.ClientIdentity

The scheduler lives in the engine's process, the middleware in the server's; neither loads what only the other needs.
"""

from __future__ import annotations

import importlib
from typing import Any

from evenflow.integrations.vllm.request_view import CLIENT_FIELD

_PLACES = {
    "ClientIdentity": "evenflow.integrations.vllm.identity",
    "FairScheduler": "evenflow.integrations.vllm.scheduler",
}

__all__ = ["CLIENT_FIELD", *_PLACES]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
