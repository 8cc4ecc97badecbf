"""What a user of the integration may set. vLLM gives its scheduler and its middleware no arguments, so it is the environment.

    EVENFLOW_POLICY             any policy of the registry, modifiers included
    EVENFLOW_CLIENTS            path of clients.toml: weights, tiers, keys. None: everybody has weight 1 and says who they are
    EVENFLOW_CLIENT_HEADERS     headers that name the client where no key does, separated by commas
    EVENFLOW_OVERTAKING         service by which others may overtake a request that waits for a LoRA slot; inf: no bound
    EVENFLOW_METRICS_NAMES      clients, and adapters, with series of their own
    EVENFLOW_ALLOW_UNTESTED     1: start with a version or a setup of vLLM that this release was not tested with

Engine arguments may say the same: ``--additional-config '{"evenflow": {"policy": "vtc"}}'``. They win over the
environment, and are not seen by the middleware, which needs clients and headers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenflow.access.client_headers import CLIENT_HEADERS
from evenflow.base.errors import ConfigError, RegistryError
from evenflow.fairness.registry import DEFAULT_POLICY, check_policy

PREFIX = "EVENFLOW_"
NAMES = ("policy", "clients", "client_headers", "overtaking", "metrics_names", "allow_untested")


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it, checked."""

    policy: str = DEFAULT_POLICY
    clients: Path | None = None
    client_headers: tuple[str, ...] = CLIENT_HEADERS
    """Lower case; the first one given wins."""
    overtaking: float = 4000.0
    """In units of service per weight."""
    metrics_names: int = 100
    allow_untested: bool = False


def read_settings(environment: Mapping[str, str], engine_arguments: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment and from vLLM's ``additional_config["evenflow"]``. Raises ConfigError or RegistryError."""
    given = {name: environment[PREFIX + name.upper()] for name in NAMES if environment.get(PREFIX + name.upper())}
    for name, value in (engine_arguments or {}).items():
        if name not in NAMES:
            raise ConfigError(f"additional_config: evenflow.{name} is not known; allowed: {', '.join(NAMES)}")
        given[name] = ",".join(value) if isinstance(value, list) else str(value)
    headers = tuple(name.strip().lower() for name in given.get("client_headers", ",".join(CLIENT_HEADERS)).split(","))
    if not all(headers):
        raise ConfigError(f"client_headers is {given['client_headers']!r}; allowed: names of headers, separated by commas")
    settings = Settings(
        policy=given.get("policy", DEFAULT_POLICY),
        clients=Path(given["clients"]) if "clients" in given else None,
        client_headers=headers,
        overtaking=_number("overtaking", given, 4000.0, 0.0, math.inf),
        metrics_names=int(_number("metrics_names", given, 100, 1, 100_000)),
        allow_untested=_is_true("allow_untested", given),
    )
    check_rejects_nobody(settings.policy)
    check_policy(settings.policy)
    return settings


def check_rejects_nobody(policy: str) -> None:
    """Raise RegistryError for a policy that answers some requests with a refusal: vLLM's scheduler cannot."""
    name = policy.rpartition("+")[2].partition(":")[0].strip()
    if name == "rpm":
        raise RegistryError(
            f"policy {policy!r} rejects requests, which a scheduler inside vLLM cannot; limit them in front of it"
        )


def _number(name: str, given: Mapping[str, str], default: float, least: float, most: float) -> float:
    try:
        value = float(given.get(name, default))
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ConfigError(f"{name} is {given[name]!r}; allowed: a number from {least:g} to {most:g}")
    return value


def _is_true(name: str, given: Mapping[str, str]) -> bool:
    text = given.get(name, "0").lower()
    if text not in ("0", "1", "false", "true"):
        raise ConfigError(f"{name} is {given[name]!r}; allowed: 0 or 1")
    return text in ("1", "true")
