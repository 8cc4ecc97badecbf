"""Who is served next. Pure Python, no torch, usable on its own: a gateway could import it."""

from evenflow.fairness.books.cost import CostFunction, Service, WeightedTokens
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights
from evenflow.fairness.defaults import PolicyDefaults
from evenflow.fairness.policy import ACCEPT, Policy, Verdict
from evenflow.fairness.registry import (
    PolicySettings,
    check_policy,
    create_policy,
    modifier_registry,
    policy_registry,
    without_secrets,
)
from evenflow.fairness.schedulable import Schedulable

__all__ = [
    "ACCEPT",
    "ClientQueues",
    "CostFunction",
    "Policy",
    "PolicyDefaults",
    "PolicySettings",
    "Schedulable",
    "Service",
    "Verdict",
    "WeightedTokens",
    "Weights",
    "check_policy",
    "create_policy",
    "modifier_registry",
    "policy_registry",
    "without_secrets",
]
