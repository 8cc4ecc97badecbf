"""What model-parallel ranks send each other: collectives, compressors, transports, bytes.

Public names are imported when they are first used: the names in ``catalogue`` load no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Algebra": "compressor",
    "Collective": "collectives.collective",
    "Compressor": "compressor",
    "Context": "compressor",
    "DEFAULT_SPECS": "catalogue",
    "Exchange": "exchange",
    "GradientRule": "compressor",
    "Ledger": "ledger",
    "LocalCollective": "collectives.collective",
    "SilentCollective": "collectives.collective",
    "TorchCollective": "collectives.collective",
    "Transport": "transport",
    "VirtualExchange": "exchange",
    "WirePlan": "compressor",
    "get_compressor": "factory",
    "get_transport": "transport",
}

if TYPE_CHECKING:
    from evenflow.comm.catalogue import DEFAULT_SPECS
    from evenflow.comm.collectives.collective import Collective, LocalCollective, SilentCollective, TorchCollective
    from evenflow.comm.compressor import Algebra, Compressor, Context, GradientRule, WirePlan
    from evenflow.comm.exchange import Exchange, VirtualExchange
    from evenflow.comm.factory import get_compressor
    from evenflow.comm.ledger import Ledger
    from evenflow.comm.transport import Transport, get_transport

__all__ = [
    "DEFAULT_SPECS",
    "Algebra",
    "Collective",
    "Compressor",
    "Context",
    "Exchange",
    "GradientRule",
    "Ledger",
    "LocalCollective",
    "SilentCollective",
    "TorchCollective",
    "Transport",
    "VirtualExchange",
    "WirePlan",
    "get_compressor",
    "get_transport",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        import importlib

        return getattr(importlib.import_module(f"evenflow.comm.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'evenflow.comm' has no attribute {name!r}")
