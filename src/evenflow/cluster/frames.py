"""Messages between a front and a replica, on one TCP connection: four bytes of length, then msgpack.

A connection that ends is the first sign that the other side has died, so nothing is buffered behind a broken one and nothing
reconnects by itself. Whoever reaches the port may use the engine: like Ray's own ports it belongs inside the cluster only.
"""

from __future__ import annotations

import asyncio
import struct

import msgspec

from evenflow.serving.client.messages import (
    Abort,
    Answer,
    Failed,
    ListAdapters,
    LoadAdapter,
    Outputs,
    PinAdapter,
    Ready,
    SetWeights,
    Submit,
    SubmitAll,
    ToEngine,
    UnloadAdapter,
)

_LENGTH = struct.Struct("<I")
LARGEST_BYTES = 1 << 28


class Report(msgspec.Struct, tag=True, array_like=True):
    """A replica's word to one front, a few times a second."""

    foreign_load: float = 0.0
    """Weighted tokens of service that wait or run there and were sent by others."""
    is_draining: bool = False
    """It ends soon: nothing more should be sent there, and what runs comes to its end."""


ToReplica = Submit | SubmitAll | Abort | LoadAdapter | UnloadAdapter | PinAdapter | ListAdapters | SetWeights
FromReplica = Outputs | Answer | Ready | Failed | Report

encoder = msgspec.msgpack.Encoder()
to_replica_decoder = msgspec.msgpack.Decoder(ToReplica)
from_replica_decoder = msgspec.msgpack.Decoder(FromReplica)


def write_frame(writer: asyncio.StreamWriter, message: ToEngine | FromReplica) -> None:
    """Put one message into the connection's buffer. Nothing happens if the connection is closing."""
    if not writer.is_closing():
        data = encoder.encode(message)
        writer.write(_LENGTH.pack(len(data)) + data)


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next message's bytes; None if the connection has ended, in whatever way, or speaks something else."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return None if length > LARGEST_BYTES else await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError):
        return None
