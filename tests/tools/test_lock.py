"""requirements.lock holds everything that pyproject.toml asks for, as constraints.txt pins it, with hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKED_EXTRAS = ("test", "dev", "cluster", "mcbench", "train")
OF_TORCH = {"torch"}
"""Installed before the locked packages: it decides between CPU and CUDA."""


def locked() -> dict[str, Version]:
    lock = (ROOT / "requirements.lock").read_text()
    return {
        canonicalize_name(name): Version(version) for name, version in re.findall(r"^([\w.-]+)==([\w.!+]+)", lock, re.MULTILINE)
    }


def test_everything_that_is_asked_for_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [line for extra in LOCKED_EXTRAS for line in project["optional-dependencies"][extra]]
    versions = locked()
    for line in asked:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name not in OF_TORCH:
            assert name in versions, f"{name} is missing; run `make lock`"
            assert requirement.specifier.contains(versions[name]), line


def test_the_lock_follows_the_constraints():
    versions = locked()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, version = line.split("==")
            assert versions.get(canonicalize_name(name), Version(version)) == Version(version), f"{line}; run `make lock`"


def test_every_package_has_hashes_and_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    for entry in re.split(r"\n(?=[\w])", lock.strip()):
        assert "--hash=sha256:" in entry, entry
    assert "://" not in lock
