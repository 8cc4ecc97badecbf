"""VTC that is told the true output lengths, exactly or with noise: what perfect prediction would be worth.

For simulation only. It is the one module besides the known-peak admission that may read ``known_output_tokens``.
"""

from __future__ import annotations

import random

from evenflow.base.errors import RegistryError
from evenflow.fairness.policies.prediction import PredictedVTC
from evenflow.fairness.registry import PolicySettings
from evenflow.fairness.schedulable import Schedulable


class Oracle:
    """Predicts a length drawn uniformly from L (1 - noise) to L (1 + noise) of the true length L (VTC paper, section 5.4)."""

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        self._noise = noise
        self._random = random.Random(seed)

    def predict(self, request: Schedulable) -> float:
        """The true length, give or take the noise."""
        length = request.known_output_tokens
        assert length is not None, f"request {request.request_id} came to an oracle without its true length"
        return length * (1 + self._noise * self._random.uniform(-1.0, 1.0)) if self._noise else length

    def observe(self, request: Schedulable) -> None:
        """There is nothing to learn."""


class OracleVTC(PredictedVTC):
    """``vtc-oracle[:noise]``, for simulation. The bound of predicted VTC: what is charged in advance is bounded here too."""

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> OracleVTC:
        """Noise from 0 to 1, 0 without an argument. Refused outside a simulation: nobody knows lengths there."""
        if not settings.is_simulation:
            raise RegistryError("vtc-oracle needs the true output lengths; only a simulation has them (try vtc-predict)")
        try:
            noise = float(argument) if argument is not None else 0.0
        except ValueError:
            noise = -1.0
        if not 0.0 <= noise <= 1.0:
            raise RegistryError(f"vtc-oracle takes a noise from 0 to 1, got {argument!r}")
        return cls(settings.queues, settings.weights, settings.cost, Oracle(noise, settings.seed))
