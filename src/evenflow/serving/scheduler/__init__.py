"""What runs in the next step: planning, admission, preemption. Decisions only, no torch."""

from evenflow.serving.scheduler.admission import Admission, KnownPeak, PredictAndPreempt
from evenflow.serving.scheduler.batching import BatchRule, ExclusivePrefillRule, MixedBatchRule
from evenflow.serving.scheduler.limits import SchedulerLimits
from evenflow.serving.scheduler.prefetch import BudgetedPrefetch, Prefetch
from evenflow.serving.scheduler.scheduler import Scheduler
from evenflow.serving.scheduler.shedding import Shedding, create_shedding
from evenflow.serving.scheduler.snapshot import EndedRequest, SchedulerSnapshot

__all__ = [
    "Admission",
    "BatchRule",
    "BudgetedPrefetch",
    "EndedRequest",
    "ExclusivePrefillRule",
    "KnownPeak",
    "MixedBatchRule",
    "PredictAndPreempt",
    "Prefetch",
    "Scheduler",
    "SchedulerLimits",
    "SchedulerSnapshot",
    "Shedding",
    "create_shedding",
]
