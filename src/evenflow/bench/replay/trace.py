"""A trace: who asked for what and when. The one input of every replay, read from a file or generated from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace. Lengths in tokens; ``output_len`` is the true length."""

    arrival_s: float
    client: str
    input_len: int
    output_len: int
    adapter: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in order of arrival, held in columns: a million of them take some tens of megabytes."""

    name: str
    clients: tuple[str, ...]
    arrival_s: np.ndarray
    """float64 [requests], seconds, not decreasing."""
    client_index: np.ndarray
    """int64 [requests] into ``clients``."""
    input_len: np.ndarray
    """int64 [requests], at least 1."""
    output_len: np.ndarray
    """int64 [requests], at least 1."""
    adapters: tuple[str, ...] = ()
    adapter_index: np.ndarray | None = None
    """int64 [requests] into ``adapters``, -1 for the base model; None: base model only."""
    weight_by_client: Mapping[str, float] = field(default_factory=dict)
    """Weights that the workload prescribes; 1 for everybody else."""
    horizon_s: float = 0.0
    """Differences are measured up to here."""
    description: str = ""

    def __post_init__(self) -> None:
        if not self.horizon_s:
            object.__setattr__(self, "horizon_s", self.last_arrival_s)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __iter__(self) -> Iterator[TraceRow]:
        adapters = self.adapter_index.tolist() if self.adapter_index is not None else [-1] * len(self)
        columns = (
            self.arrival_s.tolist(),
            self.client_index.tolist(),
            self.input_len.tolist(),
            self.output_len.tolist(),
            adapters,
        )
        for arrival_s, client, input_len, output_len, adapter in zip(*columns, strict=True):
            yield TraceRow(
                arrival_s, self.clients[client], input_len, output_len, self.adapters[adapter] if adapter >= 0 else None
            )

    @property
    def last_arrival_s(self) -> float:
        """When the last request arrives; 0 for an empty trace."""
        return float(self.arrival_s[-1]) if len(self.arrival_s) else 0.0
