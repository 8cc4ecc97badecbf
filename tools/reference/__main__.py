"""``python -m reference``: write every generated page of the manual. ``--check`` writes nothing and names stale ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from reference.commands import command_line_page
from reference.configuration import configuration_page
from reference.environment import environment_page
from reference.http_api import http_page
from reference.models import models_page
from reference.python_api import python_page
from reference.rooms import with_rooms
from reference.vllm_flags import vllm_flags_page

DOCS = Path(__file__).parents[2] / "docs"

PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": command_line_page,
    "reference/configuration.md": configuration_page,
    "reference/environment.md": environment_page,
    "reference/http.md": http_page,
    "reference/python.md": python_page,
    "operate/models.md": models_page,
    "operate/vllm-flags.md": vllm_flags_page,
    "architecture.md": lambda: with_rooms((DOCS / "architecture.md").read_text()),
}
"""Page below docs/ -> what it should hold."""

if find_spec("evenflow.serving.server.metrics.reference") is not None:
    from reference.metrics import metrics_page

    PAGES["reference/metrics.md"] = metrics_page


def stale(pages: Mapping[str, Callable[[], str]] = PAGES, docs: Path = DOCS) -> dict[str, str]:
    """Pages that are missing or do not hold what the code says, with what they should hold."""
    wanted = {name: write() for name, write in pages.items()}
    return {name: text for name, text in wanted.items() if not _holds(docs / name, text)}


def _holds(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    args = parser.parse_args()
    found = stale()
    for name, text in found.items():
        print(f"docs/{name} is stale" if args.check else f"docs/{name} written")
        if not args.check:
            (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
            (DOCS / name).write_text(text)
    return 1 if found and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
