"""What can be checked of the deployment without a cluster: rules, series, manifests, commands."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from evenflow.cli.main import build_parser

DEPLOY = Path(__file__).parents[2] / "deploy"
SERIES = re.compile(r"\b(?:evenflow|vllm)[_:][a-z_]+\b")
SUFFIXES = ("_bucket", "_total", "_sum", "_count")


def series_of(text: str) -> set[str]:
    """Names of exported series in PromQL; recorded ones (with two colons) come from the rules."""
    return {name for name in SERIES.findall(text) if not re.match(r"evenflow:", name)}


@pytest.mark.parametrize("file", ["prometheus/rules.yml", "grafana/dashboards/evenflow.json"])
def test_every_series_named_is_exported(live, file):
    exported = set(re.findall(r"^# TYPE (\S+) ", httpx.get(live.url + "/metrics").text, re.M))
    text = (DEPLOY / file).read_text()
    expressions = (
        [rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
        if file.endswith("yml")
        else [target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]]
    )
    for expression in expressions:
        for name in series_of(expression):
            bare = name
            for suffix in SUFFIXES:
                bare = bare.removesuffix(suffix)
            assert {name, bare, bare + "_total"} & exported, f"{name} of {file} is exported by no server"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize(
    "words", ["check rules rules.yml", "test rules rules_test.yml", "check config --syntax-only prometheus.yml"]
)
def test_promtool_agrees(words):
    done = subprocess.run(["promtool", *words.split()], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda file: file.name)
def test_manifests_are_yaml_and_whole(file):
    for document in yaml.safe_load_all(file.read_text()):
        assert document
        if {"kubernetes", "kuberay"} & set(file.parts):
            assert {"apiVersion", "kind"} <= document.keys()


def test_the_commands_parse():
    deployment = next(yaml.safe_load_all((DEPLOY / "kubernetes/server.yaml").read_text()))
    compose = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    unit = (DEPLOY / "systemd/evenflow.service").read_text()
    commands = [
        deployment["spec"]["template"]["spec"]["containers"][0]["args"],
        compose["services"]["server"]["command"],
        json.loads(re.search(r"^CMD (\[.*\])$", dockerfile, re.M)[1]),
        shlex.split(re.search(r"^ExecStart=\S+ (.*)$", unit, re.M)[1]),
    ]
    for words in commands:
        assert build_parser().parse_args(words).command == "serve"


def test_the_selector_finds_the_pods():
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes/server.yaml").read_text())
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    volumes = {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    mounts = {mount["name"] for mount in deployment["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert volumes == mounts


def ray_applications():
    """The serve configurations that are deployed: a file of its own, and a text inside KubeRay's manifest."""
    service = yaml.safe_load((DEPLOY / "kuberay/rayservice.yaml").read_text())
    return [yaml.safe_load((DEPLOY / "ray/serve.yaml").read_text()), yaml.safe_load(service["spec"]["serveConfigV2"])]


@pytest.mark.parametrize("index", [0, 1])
def test_the_arguments_of_ray_serve_are_options(index, tmp_path):
    """Read as Ray Serve's builder reads them, with folders that exist here."""
    from evenflow.cli.ray import read_arguments
    from evenflow.cluster.ray_options import RayOptions
    from evenflow.demo.assets import model_path

    config = ray_applications()[index]
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    (tmp_path / "clients.toml").write_text("")
    here = {"model": str(model_path()), "adapter_dir": str(tmp_path), "clients": str(tmp_path / "clients.toml")}
    assert here.keys() <= application["args"].keys()
    command = read_arguments({**application["args"], **here})
    options = RayOptions(**command.further)
    assert (options.replicas, options.fronts, options.doors) == (4, 2, "ray")
    assert command.engine.policy == "vtc-shared"


def test_ray_and_kubernetes_agree_on_the_schema():
    """Ray's own schema, where it is installed; else the fields that it has had since Serve's version 2 configuration."""
    allowed = {"proxy_location", "http_options", "grpc_options", "logging_config", "applications"}
    for config in ray_applications():
        assert config.keys() <= allowed
        assert config["http_options"]["port"] == 8000
        if importlib.util.find_spec("ray") is not None:
            from ray.serve.schema import ServeDeploySchema

            ServeDeploySchema.model_validate(config)
    service = yaml.safe_load((DEPLOY / "kuberay/rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in pods:
        spec = pod["template"]["spec"]
        assert {m["name"] for c in spec["containers"] for m in c["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
    (route,) = yaml.safe_load_all((DEPLOY / "kuberay/route.yaml").read_text())
    assert route["spec"]["rules"][0]["backendRefs"][0]["name"] == f"{service['metadata']['name']}-serve-svc"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_understood(tmp_path):
    unit = (DEPLOY / "systemd/evenflow.service").read_text().replace("/opt/evenflow/bin/evenflow", "/bin/true")
    (tmp_path / "evenflow.service").write_text(unit)
    words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "evenflow.service")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "evenflow.service" not in done.stderr, done.stderr
