"""Does compressing activations help model-parallel training? The benchmark and its cost model.

Public names are imported when they are first used: ``names`` loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenflow.mcbench.split.attach import compress_model, compression_of, emulate_model
    from evenflow.mcbench.split.wiring import Compression

_EXPORTS = {
    "Compression": "wiring",
    "compress_model": "attach",
    "compression_of": "attach",
    "emulate_model": "attach",
}

__all__ = ["Compression", "compress_model", "compression_of", "emulate_model"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        import importlib

        return getattr(importlib.import_module(f"evenflow.mcbench.split.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'evenflow.mcbench' has no attribute {name!r}")
