"""Builds the environment of the client suite, outside the project: ``python tests/clients/environment.py``.

Clients pin each other's dependencies; none of them may decide what the project is installed with. Two minutes and some
330 MB; what is there already is kept. Prints the environment's interpreter.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path.home() / ".cache" / "evenflow" / "env-clients"
CLIENTS = (
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
)


def main() -> int:
    """Build it, if it is not the one that is wanted."""
    python, stamp, wanted = FOLDER / "bin" / "python", FOLDER / "clients.txt", "\n".join(CLIENTS)
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *CLIENTS], check=True)
        stamp.write_text(wanted)
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
