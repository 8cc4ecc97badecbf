"""VTC with length prediction: the predicted cost is charged at admission and settled at the end (VTC paper, section 4.4).

Plain VTC charges only the prompt when it admits, so the client with the least counter gets a burst of slots
before the outputs are paid for. Charging what a request will probably cost removes the burst.

A prediction may be wrong by any amount, and a client may see to it that it is. Three rules bound what that does:

* clients are lifted to what others have received, never to what they were charged (level.py);
* what is predicted for one client's requests and not yet received never exceeds B, the most output that all running
  requests together have ever been seen to hold, in units of service. B is at most U, because what runs must fit the
  memory, and nothing is charged for predictions before anything has been produced;
* predictors learn from every request that was served, however it ended: one that is aborted after ten tokens was
  served ten.

So a client is picked when it has received at most B more than any other that waits. The services received by clients that
wait stay within U + B <= 2 U of each other (plain VTC: U), their growth over an interval within 2 (U + B) <= 4 U. That
is for any predictions; good ones keep it to a tenth.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

from evenflow.base.errors import RegistryError
from evenflow.fairness.books.cost import CostFunction, Service
from evenflow.fairness.books.level import Level
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights
from evenflow.fairness.policies.vtc import VTC, Account
from evenflow.fairness.registry import PolicySettings
from evenflow.fairness.schedulable import Schedulable

State = TypeVar("State")


class LengthPredictor(Protocol):
    """Guesses output lengths from those it has seen."""

    def predict(self, request: Schedulable) -> float:
        """Expected output tokens of a request that starts; 0 if nothing is known."""
        ...

    def observe(self, request: Schedulable) -> None:
        """A request that was served has ended, by itself or not, with ``num_output_tokens``."""
        ...


class Recent(Generic[State]):
    """A value by key, the least recently changed forgotten beyond ``most``: clients come and go without end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[object, State] = OrderedDict()

    def get(self, key: object) -> State | None:
        """The value of ``key``, or None."""
        return self._values.get(key)

    def put(self, key: object, value: State) -> None:
        """Change the value of ``key``; it is now the most recent one."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)


Lengths = tuple[int, ...]


class WindowMean:
    """The mean of a client's last ``window`` outputs (the paper's predictor: five); of anybody's, for a new client."""

    def __init__(self, window: int = 5, most_clients: int = 100_000) -> None:
        self._window = window
        self._by_client: Recent[Lengths] = Recent(most_clients)
        self._everybody: Lengths = ()

    def predict(self, request: Schedulable) -> float:
        """The mean, or 0 before the first output of anybody."""
        seen = self._by_client.get(request.client_id) or self._everybody
        return sum(seen) / len(seen) if seen else 0.0

    def observe(self, request: Schedulable) -> None:
        """Slide the windows."""
        length = request.num_output_tokens
        self._by_client.put(request.client_id, (*(self._by_client.get(request.client_id) or ()), length)[-self._window :])
        self._everybody = (*self._everybody, length)[-self._window :]


class ExponentialAverage:
    """A client's exponential average with weight ``alpha`` for the newest output; everybody's, for a new client."""

    def __init__(self, alpha: float = 0.2, most_clients: int = 100_000) -> None:
        self._alpha = alpha
        self._by_client: Recent[float] = Recent(most_clients)
        self._everybody: float | None = None

    def predict(self, request: Schedulable) -> float:
        """The average, or 0 before the first output of anybody."""
        average = self._by_client.get(request.client_id)
        return (average if average is not None else self._everybody) or 0.0

    def observe(self, request: Schedulable) -> None:
        """Move the averages; the first output is the first average."""
        length = request.num_output_tokens
        self._by_client.put(request.client_id, self._moved(self._by_client.get(request.client_id), length))
        self._everybody = self._moved(self._everybody, length)

    def _moved(self, average: float | None, length: int) -> float:
        return float(length) if average is None else average + self._alpha * (length - average)


class AdapterQuantile:
    """A quantile of the last outputs of a (client, adapter) pair, drawn towards everybody's while little is known of it.

    ``prior_strength`` outputs of everybody's quantile are mixed in: a pair with n outputs counts n / (n + strength).
    """

    def __init__(self, quantile: float = 0.5, window: int = 32, prior_strength: float = 4.0, most_pairs: int = 100_000) -> None:
        self._quantile = quantile
        self._strength = prior_strength
        self._window = window
        self._by_pair: Recent[Lengths] = Recent(most_pairs)
        self._everybody: deque[int] = deque(maxlen=8 * window)

    def predict(self, request: Schedulable) -> float:
        """The mixed quantile, or 0 before the first output of anybody."""
        if not self._everybody:
            return 0.0
        prior = self._of(self._everybody)
        own = self._by_pair.get((request.client_id, request.adapter))
        if not own:
            return prior
        return (len(own) * self._of(own) + self._strength * prior) / (len(own) + self._strength)

    def observe(self, request: Schedulable) -> None:
        """Slide the windows."""
        pair = (request.client_id, request.adapter)
        self._by_pair.put(pair, (*(self._by_pair.get(pair) or ()), request.num_output_tokens)[-self._window :])
        self._everybody.append(request.num_output_tokens)

    def _of(self, lengths: Sequence[int]) -> float:
        ordered = sorted(lengths)
        return ordered[min(len(ordered) - 1, math.ceil(self._quantile * len(ordered)) - 1 if self._quantile > 0 else 0)]


class PredictedVTC(VTC):
    """VTC that charges input and predicted output at admission, within a bound, more if it runs longer, and settles at the end.

    The bound of VTC with U + B in the place of U; see the module.
    """

    def __init__(
        self,
        queues: ClientQueues,
        weights: Weights | None = None,
        cost: CostFunction | None = None,
        predictor: LengthPredictor | None = None,
        level: Level | None = None,
    ) -> None:
        super().__init__(queues, weights, cost, level)
        self._predictor: LengthPredictor = predictor or WindowMean()
        self._held: dict[Hashable, float] = {}
        """Service of the output tokens of each running request, those of before a preemption left out."""
        self._total_held = 0.0
        self._most_held = 0.0
        """B: the most that ``_total_held`` has ever been."""

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> PredictedVTC:
        """``vtc-predict[:mean[:N] | :ewma[:ALPHA] | :quantile[:Q]]``; the mean of the last five without an argument."""
        return cls(settings.queues, settings.weights, settings.cost, parse_predictor(argument))

    def charge(self, request: Schedulable, service: Service) -> None:
        """Charge the tokens of this step, and note how much output the server holds."""
        account = self._accounts[request.request_id]
        has_begun, before = account.output_tokens > 0, account.bill.service
        super().charge(request, service)
        if has_begun and service.decode_tokens:  # with the first token comes the prompt, which is no output
            produced = account.bill.service - before
            self._held[request.request_id] = self._held.get(request.request_id, 0.0) + produced
            self._total_held += produced
            self._most_held = max(self._most_held, self._total_held)

    def requeued(self, request: Schedulable) -> None:
        """The client waits again, with the counter it has; the request holds nothing."""
        self._let_go(request)
        super().requeued(request)

    def settle(self, request: Schedulable) -> None:
        """Give back what was charged in advance and not received, and learn what was."""
        self._let_go(request)
        super().settle(request)
        self._predictor.observe(request)

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert also what is held."""
        super().check_integrity(waiting_clients)
        assert self._held.keys() <= self._accounts.keys()
        assert math.isclose(self._total_held, sum(self._held.values()), rel_tol=1e-9, abs_tol=1e-6)

    def _let_go(self, request: Schedulable) -> None:
        self._total_held -= self._held.pop(request.request_id, 0.0)
        if not self._held:
            self._total_held = 0.0

    def _open(self, request: Schedulable, planned: Service) -> Account:
        account = super()._open(request, planned)
        expected = min(max(0, round(self._predictor.predict(request))), request.max_output_tokens)
        account.expected_output_tokens = expected
        return account

    def _reserved(self, account: Account) -> float:
        """The price of prompt and prediction, the latter as far as the client is not charged for more than B."""
        prompt = super()._reserved(account)
        room = max(0.0, self._most_held - self._level.in_advance(account.name))
        whole = self._cost(account.planned_input_tokens, account.expected_output_tokens, account.planned_cached_tokens)
        return prompt + min(room, max(0.0, whole + account.planned_extra - prompt))


def parse_predictor(argument: str | None) -> LengthPredictor:
    """The predictor that an argument names. Raises RegistryError for another name or a value out of range."""
    name, _, value = (argument or "mean").partition(":")
    try:
        if name == "mean" and (window := int(value or 5)) >= 1:
            return WindowMean(window)
        if name == "ewma" and 0 < (alpha := float(value or 0.2)) <= 1:
            return ExponentialAverage(alpha)
        if name == "quantile" and 0 < (quantile := float(value or 0.5)) <= 1:
            return AdapterQuantile(quantile)
    except ValueError:
        pass
    raise RegistryError(
        f"vtc-predict takes mean[:N] (N from 1), ewma[:ALPHA] or quantile[:Q] (above 0, at most 1), got {argument!r}"
    )
