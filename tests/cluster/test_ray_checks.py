"""What is refused before anything is deployed, each in one sentence, and how many engines waiting prompts want. No Ray."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from evenflow.base.errors import ConfigError
from evenflow.base.version import __version__
from evenflow.cli.main import main
from evenflow.cluster.plan import DeploymentPlan
from evenflow.cluster.ray_checks import NodeReport, check_nodes, check_room
from evenflow.cluster.ray_options import RayOptions
from evenflow.cluster.ray_run import check_reachable
from evenflow.cluster.scaling import METRIC, ByWaitingTokens, wanted_replicas
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.server.server_config import ServerConfig


def a_plan(**options) -> DeploymentPlan:
    engine = EngineConfig(model=Path("/m"), device=options.pop("device", "cpu"), tensor_parallel=options.pop("ranks", 1))
    return DeploymentPlan(engine=engine, server=ServerConfig(), ray=RayOptions(**options))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_command_says_how_to_install_it(capsys):
    assert main(["ray", "serve", "--demo"]) == 1
    assert "pip install 'evenflow[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (a_plan(replicas=5), "the cluster has 4 CPUs and 5 engines want 1 each"),
        (a_plan(replicas=1, device="cuda", ranks=2), "the cluster has 1 GPUs and 1 engines want 2 each"),
        (a_plan(autoscale="9:12", cpus_per_replica=0.5), "the cluster has 4 CPUs and 9 engines want 0.5 each"),
    ],
)
def test_a_cluster_without_room(plan, says):
    with pytest.raises(ConfigError, match=says):
        check_room(plan, {"CPU": 4.0, "GPU": 1.0})
    check_room(a_plan(replicas=4), {"CPU": 4.0})
    check_room(a_plan(autoscale="1:64"), {"CPU": 4.0})


def test_nodes_that_differ():
    good = NodeReport("a", __version__, "3.11", True)
    check_nodes(a_plan(), [good, good])
    for bad, says in (
        (NodeReport("b", None, "3.11", True), f"EvenFlow is not installed on b; install {__version__} on every node"),
        (NodeReport("b", "0.0.1", "3.11", True), "there is 0.0.1 on b; install the same version on every node"),
        (NodeReport("b", __version__, "3.11", False), "/m is no model folder on b; every node needs the model there"),
    ):
        with pytest.raises(ConfigError, match=says):
            check_nodes(a_plan(), [good, bad])


@pytest.mark.parametrize(
    "wrong",
    [{"autoscale": "0:3"}, {"autoscale": "3"}, {"app_name": "a b"}, {"detach": True}, {"replicas": 0}, {"doors": "front"}],
)
def test_options_that_make_no_sense(wrong):
    with pytest.raises(ConfigError):
        RayOptions(**wrong)


def test_an_address_where_nobody_listens():
    with pytest.raises(ConfigError, match=r"cannot be reached at 127\.0\.0\.1:1"):
        check_reachable("127.0.0.1:1")
    check_reachable("auto")


def test_engines_for_waiting_prompts():
    assert [wanted_replicas(tokens, 100, 4) for tokens in (0, 150, 450, 1000)] == [2, 2, 5, 10]
    assert wanted_replicas(0, 100, 1) == 1
    context = SimpleNamespace(
        aggregated_metrics={METRIC: {"a": 900.0, "b": 400.0}},
        current_num_replicas=2,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
    )
    assert ByWaitingTokens(100)(context) == (8, {})
    assert ByWaitingTokens(1000)(context) == (2, {})
