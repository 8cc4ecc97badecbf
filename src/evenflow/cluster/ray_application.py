"""A plan as a Ray Serve application: a deployment of fronts over a deployment of engines."""

from __future__ import annotations

from typing import Any

from evenflow.cluster.plan import DeploymentPlan
from evenflow.cluster.ray_front import Front
from evenflow.cluster.ray_package import import_ray
from evenflow.cluster.ray_replica import EngineReplica
from evenflow.cluster.scaling import ByWaitingTokens

MOST_ONGOING = 1_000_000
"""The front has limits of its own, with answers that say when to come back."""


def build(plan: DeploymentPlan) -> Any:  # Any: ray.serve.Application
    """Bind both deployments. Raises ConfigError without Ray."""
    _, serve = import_ray()
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    options = plan.ray
    bounds = options.bounds()
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if bounds is not None:
        policy = AutoscalingPolicy(
            policy_function=ByWaitingTokens, policy_kwargs={"per_replica": options.waiting_tokens_per_replica}
        )
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=bounds[0],
                max_replicas=bounds[1],
                initial_replicas=min(max(options.replicas, bounds[0]), bounds[1]),
                look_back_period_s=11.0,
                upscale_delay_s=5.0,
                downscale_delay_s=60.0,
                policy=policy,
            )
        }
    drain_s = plan.server.drain_timeout_s
    patience: dict[str, Any] = {
        "graceful_shutdown_wait_loop_s": 0.2,
        "graceful_shutdown_timeout_s": drain_s + 10.0,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 30.0,
        "max_ongoing_requests": MOST_ONGOING,
    }
    engines = serve.deployment(EngineReplica).options(
        name="Engines",
        ray_actor_options={"num_cpus": options.cpus_per_replica, "num_gpus": plan.gpus_per_replica},
        **scale,
        **patience,
    )
    fronts = serve.deployment(serve.ingress()(Front)).options(
        name="Fronts", num_replicas=options.fronts, ray_actor_options={"num_cpus": 0}, **patience
    )
    return fronts.bind(plan, engines.bind(plan))
