"""Options of a deployment on Ray: how many engines, where, and how requests get to them."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.base.errors import ConfigError
from evenflow.routing.registry import DEFAULT_ROUTER, create_router
from evenflow.serving.config.kinds import Choice, Count, Number, Switch, Text
from evenflow.serving.config.option import option, read_options

MOST_REPLICAS = 1024
DOORS = ("own", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """What is deployed where. Raises ConfigError, naming the option, for a value outside its range."""

    replicas: int = option(Count(1, MOST_REPLICAS), 1, "Engines, each with the whole model; with --autoscale: at the start.")
    autoscale: str | None = option(
        Text("MIN:MAX", "MIN:MAX"),
        None,
        "Let Ray Serve start and end engines, by the prompt tokens that wait for their first answer.",
        when_none="as many as --replicas says",
    )
    waiting_tokens_per_replica: int = option(
        Count(1), 4096, "With --autoscale: waiting prompt tokens for which one engine is wanted."
    )
    fronts: int = option(Count(1, 64), 1, "HTTP servers in front of the engines; those of one machine share its port.")
    router: str = option(
        Text("affinity[:FRACTION], least-loaded, random or multiplexed", "NAME[:ARG]"),
        DEFAULT_ROUTER,
        "Which engine takes a request: the one that has its adapter, within bounded imbalance (affinity), or another rule.",
    )
    cpus_per_replica: float = option(Number(least=0), 1.0, "CPUs that Ray keeps for one engine.")
    gpus_per_replica: float | None = option(
        Number(least=0), None, "GPUs that Ray keeps for one engine.", when_none="--tensor-parallel with --device cuda, else 0"
    )
    doors: str = option(
        Choice(DOORS),
        "own",
        "Where requests come in: at --host and --port of each front, with all limits on connections (own), or at Ray Serve's "
        "HTTP proxy (ray).",
        reason="Ray's proxy hands every piece of a stream through another process.",
    )
    address: str | None = option(
        Text("auto or HOST:PORT", "ADDRESS"),
        None,
        "Ray cluster to join; auto: the one that runs on this machine.",
        when_none="one of its own, which ends with the command",
    )
    app_name: str = option(Text("a name", "NAME"), "evenflow", "Name of the deployment, for several on one cluster.")
    detach: bool = option(Switch(), False, "Return once it is deployed, and leave it running; with --address.")

    def __post_init__(self) -> None:
        read_options(self)
        create_router(self.router)
        self.bounds()
        if not self.app_name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"app_name is {self.app_name!r}; allowed: letters, digits, - and _")
        if self.detach and self.address is None:
            raise ConfigError("detach leaves a deployment running; that needs a cluster that does, --address")

    def bounds(self) -> tuple[int, int] | None:
        """Least and most engines with ``autoscale``. Raises ConfigError for what are no bounds."""
        if self.autoscale is None:
            return None
        least, _, most = self.autoscale.partition(":")
        if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most) <= MOST_REPLICAS):
            raise ConfigError(f"autoscale is {self.autoscale!r}; allowed: MIN:MAX, 1 to {MOST_REPLICAS}, as in 1:16")
        return int(least), int(most)
