"""VTC that takes memory back: the poorest client need not wait for the richest client's requests to finish.

The bound of VTC contains wq M, because a full batch is paid for after it was admitted and nobody may be stopped.
With preemption it does not depend on the memory. A client is ahead by what it has *received* above another's counter: one
that is merely charged in advance is not stopped for it. The newest request of the richest client goes back to
the head of its queue; what it had computed has to be recomputed, which is counted and charged to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.base.errors import RegistryError
from evenflow.fairness.books.cost import CostFunction
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights
from evenflow.fairness.policies.prediction import LengthPredictor, PredictedVTC
from evenflow.fairness.registry import PolicySettings
from evenflow.fairness.schedulable import Schedulable


class PreemptingVTC(PredictedVTC):
    """Predicted VTC that preempts for a waiting client whose counter is ``lead`` below that of one that runs.

    ``lead`` keeps two clients from preempting each other in turns: between two preemptions for the same client its
    counter has to rise by ``lead``, that is, it has been served.

    The bound: what waiting clients have received stays within LEAD + B + what one step and one prompt cost, with B of
    predicted VTC, as long as memory can be taken back by stopping requests.
    """

    def __init__(
        self,
        queues: ClientQueues,
        weights: Weights | None = None,
        cost: CostFunction | None = None,
        predictor: LengthPredictor | None = None,
        lead: float = 2000.0,
    ) -> None:
        super().__init__(queues, weights, cost, predictor)
        self._lead = lead

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> PreemptingVTC:
        """``vtc-preempt[:LEAD]``, 2000 units of service without an argument."""
        try:
            lead = float(argument) if argument is not None else 2000.0
        except ValueError:
            lead = -1.0
        if not 0 < lead < float("inf"):
            raise RegistryError(f"vtc-preempt takes a lead above 0, in units of service, got {argument!r}")
        return cls(settings.queues, settings.weights, settings.cost, lead=lead)

    def displaced(self, head: Schedulable, running: Sequence[Schedulable]) -> Schedulable | None:
        """The newest request of the richest client, if it is richer than the head's client by more than the lead."""
        victim = self.victim(running)
        if victim is None or self._level.lead(victim.client_id, head.client_id) <= self._lead:
            return None
        return victim
