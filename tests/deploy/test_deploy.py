"""What can be checked of the deployment without a cluster: rules, series, manifests, commands."""

from __future__ import annotations

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
        if "kubernetes" in file.parts:
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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_understood(tmp_path):
    unit = (DEPLOY / "systemd/evenflow.service").read_text().replace("/opt/evenflow/bin/evenflow", "/bin/true")
    (tmp_path / "evenflow.service").write_text(unit)
    words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "evenflow.service")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "evenflow.service" not in done.stderr, done.stderr
