"""Does compressing activations help model-parallel training? The benchmark and its cost model.

Public names are imported when they are first used: ``names`` loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenflow.mcbench.split.attach import Compression, compress_model, compression_of, emulate_model

__all__ = ["Compression", "compress_model", "compression_of", "emulate_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("evenflow.mcbench.split.attach"), name)
    raise AttributeError(f"module 'evenflow.mcbench' has no attribute {name!r}")
