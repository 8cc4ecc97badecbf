"""Builds the environments of the client suite, outside the project: ``python tests/clients/environment.py``.

Clients pin each other's dependencies; none of them may decide what the project is installed with, and three groups cannot
live together either. Those for Node are left out where there is no npm. Some minutes and 1 GB; what is there already is
kept. Prints the interpreter that runs the suite.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path.home() / ".cache" / "evenflow"
HERE = Path(__file__).parent
NODE = CACHE / "env-clients-node"
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "env-clients": (
        "openai==1.109.1",
        "anthropic==2.14.0",
        "instructor==1.3.2",
        "litellm==1.80.0",
        "langchain-openai==1.1.9",
        "pydantic-ai-slim[openai]==1.30.1",
        "openai-agents==0.3.3",
        "opentelemetry-api<1.37",  # pydantic-ai reads what later ones moved
        "pytest>=8",
        "httpx",
    ),
    "env-clients-frameworks": ("llama-index-llms-openai-like==0.8.1", "haystack-ai==3.4.1", "jsonschema"),
    "env-clients-proxy": ("litellm[proxy]==1.80.0", "openai==1.109.1", "httpx"),
}


def python_of(name: str) -> Path:
    """The interpreter of one of them."""
    return CACHE / name / "bin" / "python"


def main() -> int:
    """Build those that are not as they are wanted."""
    for name, packages in ENVIRONMENTS.items():
        python, stamp, wanted = python_of(name), CACHE / name / "clients.txt", "\n".join(packages)
        if not stamp.exists() or stamp.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", str(CACHE / name)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
            stamp.write_text(wanted)
    npm = shutil.which("npm")
    if npm is None:
        print("npm is not there: the clients for Node are left out", file=sys.stderr)
    else:
        _build_node(npm)
    print(python_of("env-clients"))
    return 0


def _build_node(npm: str) -> None:
    wanted, stamp = (HERE / "node" / "package.json").read_text(), NODE / "clients.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    NODE.mkdir(parents=True, exist_ok=True)
    (NODE / "package.json").write_text(wanted)
    subprocess.run([npm, "install", "--no-audit", "--no-fund", "--silent"], cwd=NODE, check=True)
    stamp.write_text(wanted)


if __name__ == "__main__":
    sys.exit(main())
