"""What figures depend on besides their configuration."""

from __future__ import annotations

import os
import platform

import torch

from evenflow.base.version import __version__


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and its libraries, and the kind of machine."""
    import transformers

    return {
        "evenflow": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
