"""The tensors of a folder whose experts are stored as one array, as if each were stored by itself.

Most folders hold each expert's matrices by themselves. Newer libraries may save what they compute with: gate and up of all
experts [E, 2I, H], down of all experts [E, H, I], and the router beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from evenflow.serving.models.mixture import Mixture
from evenflow.serving.models.stored.stored_weights import StoredWeights
from evenflow.serving.quant.grouped_matrix import GroupedMatrix


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor that is asked for is stored."""

    whole: str
    expert: int
    rows: range


class StackedExperts:
    """StoredWeights of ``stored``. ``places``: by the name that a matrix is asked for. ``renamed``: other tensors, likewise."""

    def __init__(self, stored: StoredWeights, places: Mapping[str, _Place], renamed: Mapping[str, str]) -> None:
        self._stored, self._places, self._renamed = stored, places, renamed
        self.is_quantised, self.description = stored.is_quantised, stored.description
        gone = {place.whole for place in places.values()} | set(renamed.values())
        shapes = {name: shape for name, shape in stored.shapes.items() if name not in gone}
        shapes |= {name: stored.shapes[other] for name, other in renamed.items()}
        shapes |= {name: (len(place.rows), stored.shapes[place.whole][2]) for name, place in places.items()}
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def tensor(self, name: str) -> torch.Tensor:
        """See ``StoredWeights.tensor``."""
        if name in self._places:
            return self.part(name, range(self.shapes[name][0]))
        return self._stored.tensor(self._renamed.get(name, name))

    def part(self, name: str, rows: range, columns: range | None = None) -> torch.Tensor:
        """See ``StoredWeights.part``."""
        place = self._places.get(name)
        if place is None:
            return self._stored.part(self._renamed.get(name, name), rows, columns)
        own = place.rows[rows.start : rows.stop]
        matrix = self._stored.part(place.whole, range(place.expert, place.expert + 1))[0, own.start : own.stop]
        return matrix if columns is None else matrix[:, columns.start : columns.stop]

    def grouped(self, name: str) -> GroupedMatrix | None:
        """See ``StoredWeights.grouped``."""
        return None if name in self._places else self._stored.grouped(self._renamed.get(name, name))

    def close(self) -> None:
        """See ``StoredWeights.close``."""
        self._stored.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def each_expert_by_itself(stored: StoredWeights, mixture: Mixture, hidden_size: int) -> StoredWeights:
    """``stored`` itself, if it holds no experts in one array of the right shape."""
    names = mixture.names
    gate_up, down = f"mlp.experts.{STACKED[0]}", f"mlp.experts.{STACKED[1]}"
    places: dict[str, _Place] = {}
    renamed: dict[str, str] = {}
    shapes = {
        gate_up: (mixture.num_experts, 2 * mixture.width, hidden_size),
        down: (mixture.num_experts, hidden_size, mixture.width),
    }
    for layer, is_sparse in enumerate(mixture.is_sparse):
        prefix = f"model.layers.{layer}."
        if not is_sparse or any(stored.shapes.get(f"{prefix}{name}") != shape for name, shape in shapes.items()):
            continue
        half = range(mixture.width)
        for expert in range(mixture.num_experts):
            one = f"{prefix}{names.block}.experts.{expert}."
            places[f"{one}{names.gate}.weight"] = _Place(f"{prefix}{gate_up}", expert, half)
            places[f"{one}{names.up}.weight"] = _Place(f"{prefix}{gate_up}", expert, range(len(half), 2 * len(half)))
            places[f"{one}{names.down}.weight"] = _Place(f"{prefix}{down}", expert, range(hidden_size))
        router, stored_router = f"{prefix}{names.block}.{names.router}.weight", f"{prefix}mlp.gate.weight"
        if router != stored_router and stored_router in stored.shapes:
            renamed[router] = stored_router
    return StackedExperts(stored, places, renamed) if places else stored


STACKED = ("gate_up_proj", "down_proj")
"""Names of the arrays, beside ``experts``."""

__all__ = ["STACKED", "StackedExperts", "each_expert_by_itself"]
