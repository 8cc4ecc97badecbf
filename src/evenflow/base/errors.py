"""The exception tree: every error EvenFlow raises on purpose.

    EvenFlowError
    ├── ConfigError              a setting, file or command line that cannot work
    │   ├── ModelError           a model folder that is not one, or holds something unsupported
    │   └── RegistryError        an unknown or ambiguous plug-in name
    ├── InvalidRequest           one request is wrong (`param` names the field)
    │   ├── PromptTooLong
    │   └── ConstraintFailed     a grammar, schema or regular expression that cannot be followed
    ├── AdapterError             anything about one adapter
    │   ├── AdapterRejected      the folder holds something that cannot be served faithfully (all `reasons`)
    │   ├── AdapterNotFound      no such name, or no adapter at that path
    │   ├── AdapterCacheFull     no room for it until another one is unloaded
    │   ├── AdapterUnavailable   the host, not the adapter, is at fault: disk, memory, file handles, time
    │   ├── AdapterDamaged       its rows on the host were lost or changed behind our back
    │   └── AdapterExists        the name is taken
    ├── AccessDenied             the caller may not do this
    │   ├── InvalidKey           no key, or one that nobody has
    │   └── NotAllowed           a good key that does not open this
    ├── Rejected                 right, but not now: `retry_after_s` says when
    │   ├── ClientOverLimit      the client's own limit
    │   │   └── BudgetSpent      what the client may use this month
    │   ├── ServerFull           everybody's limit
    │   └── SLOUnreachable       its first token would come later than it is wanted
    ├── TrainingDiverged         a training run whose loss is no longer a finite number
    ├── WireError                what ranks send each other cannot be encoded, decoded or delivered
    │   └── NonFiniteInput       NaN, infinity, or a value beyond the range of the wire format
    └── EngineDead               the engine process ended; nothing can be served
        └── ReplicaLost          one of several engines ended; others may be there

"Not now" inside the engine is a return value, "impossible" is an assert; neither is in this tree.
HTTP status codes are chosen in ``evenflow.serving.server`` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence


class EvenFlowError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(EvenFlowError):
    """A setting, a file or a command line that cannot work."""


class ModelError(ConfigError):
    """A model folder that is not one, or that holds something EvenFlow does not support."""


class RegistryError(ConfigError):
    """An unknown or ambiguous plug-in name."""


class InvalidRequest(EvenFlowError):
    """One request is wrong. ``param`` is the field at fault, if a single one is."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(InvalidRequest):
    """The prompt, with the tokens asked for, does not fit the model's context or the arena."""


class ConstraintFailed(InvalidRequest):
    """What an answer must look like cannot be compiled, or became too complex while the answer was written."""


class AdapterError(EvenFlowError):
    """Anything about one adapter."""


class AdapterRejected(AdapterError):
    """An adapter folder holds something that cannot be served faithfully.

    ``reasons`` lists every fault found, not only the first.
    """

    def __init__(self, where: str, reasons: Sequence[str]) -> None:
        self.where = where
        self.reasons = tuple(reasons)
        super().__init__(f"adapter {where} cannot be served: " + "; ".join(self.reasons))


class AdapterNotFound(AdapterError):
    """No adapter of that name, or nothing at that path."""


class AdapterCacheFull(AdapterError):
    """There is no room for one more adapter until another one is unloaded."""


class AdapterUnavailable(AdapterError):
    """The host cannot read or convert it now: its disk is full, it has no file handles left, or it is too slow."""


class AdapterDamaged(AdapterError):
    """The server's own copy of the adapter's rows is gone, short or changed: nothing is computed with it."""


class AdapterExists(AdapterError):
    """The name is already taken by another adapter or by the base model."""


class AccessDenied(EvenFlowError):
    """The caller may not do this."""


class InvalidKey(AccessDenied):
    """No API key, or one that nobody has."""


class NotAllowed(AccessDenied):
    """A good key that does not open this: another client's adapter, or an administrator's call."""


class Rejected(EvenFlowError):
    """A right request that cannot be taken now. ``retry_after_s`` is the predicted wait in seconds; infinite: never."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClientOverLimit(Rejected):
    """The client is over its own limit; other clients are not affected."""


class BudgetSpent(ClientOverLimit):
    """The client has used what it may use this month."""


class ServerFull(Rejected):
    """The waiting queue of the whole server is full."""


class SLOUnreachable(Rejected):
    """The first token would come ``predicted_ttft_s`` after the request's arrival: later than its objective."""

    def __init__(self, message: str, retry_after_s: float = 1.0, predicted_ttft_s: float = 0.0) -> None:
        super().__init__(message, retry_after_s)
        self.predicted_ttft_s = predicted_ttft_s


class TrainingDiverged(EvenFlowError):
    """A training run whose loss, or what its ranks send each other, is no longer finite. ``step`` is 0-based."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"diverged at step {step + 1}: {reason}")
        self.step = step


class WireError(EvenFlowError):
    """What ranks send each other cannot be encoded, decoded or delivered."""


class NonFiniteInput(WireError):
    """A tensor to be sent holds NaN, infinity, or a value beyond the range of the wire format."""


class EngineDead(EvenFlowError):
    """The engine process ended; no request can be served any more."""


class ReplicaLost(EngineDead):
    """One of several engines, or the connection to it, has ended; others may be there."""
