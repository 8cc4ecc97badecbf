"""Policies by name: ``create_policy("rpm:20", queues=...)``; some go in front of another: ``cluster:8+vtc``.

Modules are imported when a name is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from evenflow.base.errors import RegistryError
from evenflow.base.registry import Registry
from evenflow.fairness.books.cost import CostFunction, WeightedTokens
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights, tiered
from evenflow.fairness.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """What any policy may be built from; each takes what it needs."""

    queues: ClientQueues
    """Shared with the scheduler."""
    weights: Weights | None = None
    """A client's own weight times its tier's; None: every client has weight 1."""
    own_weights: Weights | None = None
    """Without the tier's, for policies that share between tiers first."""
    cost: CostFunction = field(default_factory=WeightedTokens)
    seed: int = 0
    """For policies that draw random numbers."""
    is_simulation: bool = False
    """True lengths are known; policies that need them are refused elsewhere."""
    tier_by_client: Mapping[str, str] = field(default_factory=dict)
    """For policies that share between tiers first; a client not in it is in the tier "" of weight 1."""
    weight_by_tier: Mapping[str, float] = field(default_factory=dict)


DEFAULT_POLICY = "fair"
"""What serves when nothing else is asked for."""


class PolicyFactory(Protocol):
    """What a registry entry points to: a class with this constructor."""

    def from_settings(self, settings: PolicySettings, argument: str | None) -> Policy:
        """Build the policy. ``argument`` is what followed the colon. Raises RegistryError if it makes no sense."""
        ...


def policy_registry() -> Registry:
    """A registry of the policies that come with EvenFlow; the caller may add its own."""
    return Registry(
        "policy",
        {
            "drr": "evenflow.fairness.policies.baselines:DRR",
            "fair": "evenflow.fairness.policies.fair:FairVTC",
            "fcfs": "evenflow.fairness.policies.baselines:FCFS",
            "hierarchy": "evenflow.fairness.policies.hierarchy:HierarchicalVTC",
            "lcfs": "evenflow.fairness.policies.lcfs:LCFS",
            "lcfs-overload": "evenflow.fairness.policies.lcfs:LCFSUnderOverload",
            "lcf": "evenflow.fairness.policies.baselines:LCF",
            "round-robin": "evenflow.fairness.policies.baselines:RoundRobin",
            "rpm": "evenflow.fairness.policies.baselines:RPM",
            "vtc": "evenflow.fairness.policies.vtc:VTC",
            "vtc-adapter": "evenflow.fairness.policies.adapter_aware:AdapterVTC",
            "vtc-adapter-client": "evenflow.fairness.policies.adapter_aware:AdapterClientVTC",
            "vtc-client-adapter": "evenflow.fairness.policies.adapter_aware:ClientAdapterVTC",
            "vtc-half-lift": "evenflow.fairness.policies.baselines:HalfLiftedVTC",
            "vtc-oracle": "evenflow.fairness.policies.oracle:OracleVTC",
            "vtc-preempt": "evenflow.fairness.policies.preempting:PreemptingVTC",
            "vtc-predict": "evenflow.fairness.policies.prediction:PredictedVTC",
            "vtc-shared": "evenflow.fairness.policies.shared:SharedVTC",
        },
    )


class ModifierFactory(Protocol):
    """What an entry of the modifiers points to: a class with this constructor."""

    def around(self, policy: Policy, argument: str | None) -> Policy:
        """Build it in front of ``policy``. Raises RegistryError if the argument makes no sense."""
        ...


def modifier_registry() -> Registry:
    """What may be put in front of a policy with a plus sign."""
    return Registry("modifier", {"cluster": "evenflow.fairness.policies.clustering:Clustered"})


def create_policy(
    spec: str,
    *,
    queues: ClientQueues,
    weights: Weights | None = None,
    cost: CostFunction | None = None,
    seed: int = 0,
    is_simulation: bool = False,
    tier_by_client: Mapping[str, str] | None = None,
    weight_by_tier: Mapping[str, float] | None = None,
    registry: Registry | None = None,
) -> Policy:
    """Build the policy ``[MODIFIER[:ARGUMENT]+]NAME[:ARGUMENT]``. Raises RegistryError, naming what is known.

    ``weights`` are the clients' own; policies that know no tiers multiply them by the tier's. All three mappings are read
    at every use: whoever changes one tells the policy by ``shares_changed``. Raises ConfigError for a weight that is none.
    """
    tiers = {} if tier_by_client is None else tier_by_client
    tier_weights = {} if weight_by_tier is None else weight_by_tier
    settings = PolicySettings(
        queues=queues,
        weights=tiered(weights, tiers, tier_weights),
        own_weights=weights,
        cost=cost or WeightedTokens(),
        seed=seed,
        is_simulation=is_simulation,
        tier_by_client=tiers,
        weight_by_tier=tier_weights,
    )
    return _build(spec, settings, registry or policy_registry())


def _build(spec: str, settings: PolicySettings, registry: Registry) -> Policy:
    first, plus, rest = spec.partition("+")
    modifier, colon, argument = first.partition(":")
    modifiers = modifier_registry()
    if modifier.strip() in modifiers:
        if not plus or not rest.strip():
            example, given = without_secrets(first.strip()), without_secrets(spec)
            raise RegistryError(f"{modifier.strip()!r} goes in front of a policy, as in {example}+vtc; got {given!r}")
        outer: ModifierFactory = modifiers.load(modifier.strip())
        return outer.around(_build(rest, settings, registry), argument.strip() if colon else None)
    name, colon, argument = spec.partition(":")
    factory: PolicyFactory = registry.load(name.strip())
    return factory.from_settings(settings, argument.strip() if colon else None)


def check_policy(spec: str, *, is_simulation: bool = False) -> None:
    """Raise RegistryError if ``create_policy`` would."""
    create_policy(spec, queues=ClientQueues(), is_simulation=is_simulation).close()


def without_secrets(text: str) -> str:
    """``text`` as it may be shown: user names, passwords and queries of the addresses in it are starred out.

    A policy's name may hold the address of a Redis, and that its password.
    """
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1?***", re.sub(r"://\S*@", "://***@", text))


def refuse_argument(name: str, argument: str | None) -> None:
    """Raise RegistryError if a policy that takes no argument was given one."""
    if argument is not None:
        raise RegistryError(f"policy {name!r} takes no argument, got {argument!r}")
