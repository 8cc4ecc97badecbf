"""Functions, classes, methods and imports that nothing uses, found by vulture; run by ``make check``.

Names are counted as used where a registry names them in a string (``module:Name``). Fields of dataclasses and structs
are left out, because their readers are files and clients rather than code. Tests count as users: what only a test uses is
either a seam's double or belongs to the test, and a reviewer sees which.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).parents[2]

USERS = ("src", "tools", "tests", "examples", "benchmarks/recipes")
CHECKED = ("src/", "tools/")

CALLED_BY_OTHERS = {
    "typingctx": "numba hands it to every intrinsic",
    "_to_string": "llvmlite prints its types by it",
    "capture_signals": "uvicorn's hook, replaced here",
    "frame": "every signal handler is given one",
    "__dir__": "Python calls it",
    "__getattr__": "Python calls it",
    "can_use_peers": "an attribute of the protocol, read through it",
    "operators": "the measuring process is told its methods by name",
    "__call__": "the protocol of a function",
    "FairSyncScheduler": "vLLM loads it by its name",
    "ClientStatLogger": "vLLM loads it by its name",
    "for_template": "the chat endpoint will hand offered tools to the template by it",
    "check_health": "Ray Serve calls it",
    "record_autoscaling_stats": "Ray Serve calls it",
    "log_engine_initialized": "vLLM calls it",
}
"""Names that look unused, and who uses them."""

DECORATORS = ["@app.*", "@router.*", "@pytest.*", "@register_model", "@overload", "@property"]
"""What these decorate is called by whoever the decorator belongs to."""

_DOTTED = re.compile(r"\"[a-z_]+(?:\.[a-z_0-9]+)+:([A-Za-z_0-9]+)\"")


def unused(root: Path = ROOT) -> list[str]:
    """One line for each thing in ``src`` and ``tools`` that nothing uses."""
    named_in_strings = {
        name for folder in USERS for file in (root / folder).rglob("*.py") for name in _DOTTED.findall(file.read_text())
    }
    vulture = Vulture(ignore_names=[*CALLED_BY_OTHERS, *named_in_strings], ignore_decorators=DECORATORS)
    vulture.scavenge([str(root / folder) for folder in USERS])
    found = []
    for item in vulture.get_unused_code(min_confidence=60):
        path = Path(item.filename).resolve().relative_to(root.resolve()).as_posix()
        if item.typ not in ("variable", "attribute") and path.startswith(CHECKED):
            found.append(f"{path}:{item.first_lineno}: unused {item.typ} {item.name!r}")
    return sorted(found)


if __name__ == "__main__":
    faults = unused()
    print("\n".join(faults), end="\n" if faults else "")
    sys.exit(1 if faults else 0)
