"""The process that reads what strangers wrote: ``python -m evenflow.serving.adapters.reading_process PARENT``.

Started by ``bounded_reading``. It takes requests (a length, then a pickle: they come from the engine) on standard input
and answers each with one line of JSON. Its memory is bounded by the kernel, its time by whoever started it, and it gives
way to the engine on the processor. Whatever goes wrong with a folder is an answer, not an end.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from evenflow.base.children import die_with_parent
from evenflow.base.errors import AdapterRejected, AdapterUnavailable, EvenFlowError
from evenflow.base.logs import printable
from evenflow.base.memory_size import format_size
from evenflow.serving.adapters.adapter_files import as_host_fault
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.reading import AdapterInMemory, InProcessReading
from evenflow.serving.adapters.tensor_source import prepare_for, weights_file

_SPARE_BYTES = 256 << 20
"""For parsing: a header of 8 MiB of JSON takes a tenth of it."""
_COPIES = 4
"""Of the weights: as read, as laid out, and one tensor of at most their size widened, in two steps."""
_GROWN_BYTES = 1 << 30
"""A process that has grown by so much is replaced after its answer."""
_NICENESS = 10
_FAULT_CHARACTERS = 200


class Server:
    """One request after the other; holds at most one adapter."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._held: AdapterInMemory | None = None
        self._at_first_bytes = _address_space_bytes()
        self._reading = InProcessReading()

    def answer(self, request: tuple[Any, ...]) -> dict[str, Any]:
        """What is answered to one request."""
        path = request[1] if len(request) > 1 else Path()
        try:
            if request[0] == "read":
                return self._read(*request[1:])
            if request[0] == "write":
                assert self._held is not None
                self._held.write(*request[1:])
            self._held = None
            return {}
        except EvenFlowError as error:
            return _refusal(error)
        except MemoryError:
            self._held = None
            return _refusal(AdapterRejected(str(path), [f"it needs more memory than {self._allowed} to be read"]))
        except OSError as error:
            fault = (
                as_host_fault(error)
                if request[0] == "read"
                else AdapterUnavailable(f"the adapter cache cannot take it: {error.strerror}")
            )
            if isinstance(fault, EvenFlowError):
                return _refusal(fault)
            return _refusal(AdapterRejected(str(path), [f"it cannot be read ({error.strerror})"]))
        except Exception as error:
            fault_text = printable(f"{type(error).__name__}: {error}")[:_FAULT_CHARACTERS]
            return _refusal(AdapterRejected(str(path), [f"it cannot be read ({fault_text})"]))

    @property
    def has_grown(self) -> bool:
        """True if the process should be replaced: memory is not always given back."""
        return _address_space_bytes() - self._at_first_bytes > _GROWN_BYTES

    def _read(
        self,
        path: Path,
        layout: Any,
        max_lora_rank: int | None,
        allowed: tuple[Path, ...],
        bound: int,
        base: tuple[Path, bool] | None,
    ) -> dict[str, Any]:
        self._held = None
        self._lift_limit()
        prepare_for(weights_file(path))
        self._reading.base = None if base is None else _AnnouncedWeights(*base, lambda weights: self._expect(weights, bound))
        self._limit_memory(_SPARE_BYTES + _COPIES * bound)
        self._held = self._reading.read(path, layout, max_lora_rank, allowed)
        return {
            "digest": self._held.digest,
            "num_bytes": self._held.num_bytes,
            "base_model": self._held.base_model[:_FAULT_CHARACTERS],
            "depends_on_base": self._held.depends_on_base,
            "warnings": list(self._held.warnings),
            "states": self._held.states,
        }

    def _expect(self, weights: BaseWeights, bound: int) -> None:
        """Base weights are about to be read: that takes time, and memory for the largest of them."""
        self._limit_memory(_SPARE_BYTES + _COPIES * (bound + 2 * weights.largest_bytes))
        self._tell({"reads_base_bytes": weights.size_bytes})

    @staticmethod
    def _lift_limit() -> None:
        """Code that is loaded now is no adapter's, and the last one's limit is not meant for it."""
        if hasattr(resource, "RLIMIT_AS"):
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def _limit_memory(self, num_bytes: int) -> None:
        self._allowed = format_size(num_bytes)
        limit = _address_space_bytes() + num_bytes
        if hasattr(resource, "RLIMIT_AS"):
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


class _AnnouncedWeights(BaseWeights):
    """Says so before the first of them is read."""

    def __init__(self, folder: Path, is_tied: bool, announce: Callable[[BaseWeights], None]) -> None:
        super().__init__(folder, is_tied)
        self._announce: Callable[[BaseWeights], None] | None = announce

    def for_one_read(self) -> BaseWeights:
        """It is made for one read."""
        return self

    def weight(self, path: str) -> np.ndarray | None:
        """See BaseWeights."""
        if self._announce is not None:
            announce, self._announce = self._announce, None
            announce(self)
        return super().weight(path)


def main(parent: int) -> int:
    """Answer until the parent, process ``parent``, is gone; return the exit status."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)
    requests, answers = sys.stdin.buffer, os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    server = Server(lambda answer: _send(answers, answer))
    _send(answers, {})
    while (request := _receive(requests)) is not None:
        answer = server.answer(request)
        _send(answers, answer)
        if request[0] == "drop" and server.has_grown:
            return 0
    return 0


def _receive(stream: BinaryIO) -> tuple[Any, ...] | None:
    length = stream.read(4)
    if len(length) < 4:
        return None
    request: tuple[Any, ...] = pickle.loads(stream.read(int.from_bytes(length, "little")))
    return request


def _send(descriptor: int, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def _refusal(error: EvenFlowError) -> dict[str, Any]:
    reasons = list(error.reasons) if isinstance(error, AdapterRejected) else []
    return {"error_type": type(error).__name__, "error": str(error), "reasons": reasons}


def _address_space_bytes() -> int:
    """What the limit is compared with; 0 where it cannot be told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
