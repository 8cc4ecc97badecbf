"""EvenFlow: one base model, thousands of LoRA adapters, many clients, served fairly.

Public names are imported when they are first used, so that ``import evenflow.fairness`` loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenflow.base.version import __version__

_EXPORTS = {
    "LLM": "evenflow.serving.client.llm",
    "SamplingParams": "evenflow.serving.core.sampling",
    "EvenFlowError": "evenflow.base.errors",
}

if TYPE_CHECKING:
    from evenflow.base.errors import EvenFlowError
    from evenflow.serving.client.llm import LLM
    from evenflow.serving.core.sampling import SamplingParams

__all__ = ["LLM", "EvenFlowError", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        import importlib

        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'evenflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
