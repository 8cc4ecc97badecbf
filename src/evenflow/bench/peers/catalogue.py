"""The engines that can be compared, by name: `NAME` or `NAME:FORM`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from evenflow.base.errors import RegistryError
from evenflow.bench.peers.evenflow_peer import EvenFlowPeer
from evenflow.bench.peers.llama_cpp import LlamaCppPeer
from evenflow.bench.peers.openvino_peer import OpenVinoPeer
from evenflow.bench.peers.peer import Peer
from evenflow.bench.peers.peft_peer import PeftPeer
from evenflow.bench.peers.vllm_cpu import VllmCpuPeer

PEERS: Mapping[str, Callable[[str], Peer]] = MappingProxyType(
    {
        "evenflow": EvenFlowPeer,
        "llama.cpp": LlamaCppPeer,
        "openvino": OpenVinoPeer,
        "vllm-cpu": VllmCpuPeer,
        "peft": PeftPeer,
    }
)
"""Each takes the form of its weights, or an empty text for bf16."""


def make_peer(name: str) -> Peer:
    """The engine called ``name``. Raises RegistryError listing the known ones, and PeerMissing for a form it has not."""
    kind, _, form = name.partition(":")
    if kind not in PEERS:
        raise RegistryError(f"no peer is called {name!r}; known: {', '.join(PEERS)}, each with :FORM, e.g. llama.cpp:q4_0")
    return PEERS[kind](form)
