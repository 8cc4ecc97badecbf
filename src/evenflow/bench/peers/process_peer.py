"""Engines that are libraries: a child process that answers JSON lines, so that nothing of theirs is imported here.

Its first line says that it is ready. ``{"prompts": [[ids]], "max_tokens": n, "adapters": [name or null]}`` is answered by
``{"seconds": s, "token_ids": [[ids]]}``, or by ``{"error": text}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenflow.bench.harness import JsonChild
from evenflow.bench.peers.peer import Batch, PeerFailed, PeerMissing, Setup, Timing

_START_TIMEOUT_S = 400.0
_ANSWER_TIMEOUT_S = 600.0


class ProcessPeer:
    """A peer behind JSON lines; what differs is how it is started."""

    name = "process"

    def __init__(self) -> None:
        self._child: JsonChild | None = None

    def command(self, setup: Setup) -> tuple[Sequence[str], Mapping[str, str]]:
        """Words, and what is set in its environment. Raises PeerMissing."""
        raise NotImplementedError

    def start(self, setup: Setup) -> None:
        """See Peer."""
        words, variables = self.command(setup)
        path = setup.logs / f"{self.name.replace(':', '-')}.log"
        try:
            with path.open("wb") as log:
                self._child = JsonChild(words, self.name, environment=variables, stderr=log, timeout_s=_START_TIMEOUT_S)
        except (RuntimeError, OSError, ValueError) as error:
            end = "\n".join(path.read_text(errors="replace").splitlines()[-8:])
            raise (PeerMissing if "No module named" in end else PeerFailed)(f"{error}\n{end}") from None

    def answer(self, batch: Batch) -> list[list[int]]:
        """See Peer."""
        found: list[list[int]] = self._ask(batch)["token_ids"]
        return found

    def measure(self, batch: Batch) -> Timing:
        """See Peer."""
        answer = self._ask(batch)
        for ids in answer["token_ids"]:
            if len(ids) != batch.output_tokens:
                raise PeerFailed(f"an answer has {len(ids)} tokens instead of {batch.output_tokens}")
        return Timing(float(answer["seconds"]))

    def stop(self) -> None:
        """See Peer."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _ask(self, batch: Batch) -> dict[str, Any]:
        assert self._child is not None, "a peer is started before it is asked"
        question = {
            "prompts": [list(prompt) for prompt in batch.prompts],
            "max_tokens": batch.output_tokens,
            "adapters": list(batch.adapters),
        }
        try:
            answer = self._child.ask(question, _ANSWER_TIMEOUT_S)
        except (RuntimeError, OSError, ValueError) as error:
            raise PeerFailed(str(error)) from None
        if "error" in answer:
            raise PeerFailed(str(answer["error"]))
        return answer
