"""What model-parallel ranks send each other: collectives, compressors, transports, bytes."""

from evenflow.comm.collective import Collective, LocalCollective, TorchCollective
from evenflow.comm.compressor import DEFAULT_SPECS, Algebra, Compressor, Context, GradientRule, WirePlan, get_compressor
from evenflow.comm.exchange import Exchange, VirtualExchange
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
    "TorchCollective",
    "Transport",
    "VirtualExchange",
    "WirePlan",
    "get_compressor",
    "get_transport",
]
