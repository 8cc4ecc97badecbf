"""Builds what the traces suite needs, outside the project: an environment with OpenTelemetry over the project's own packages.

    python tests/otel/environment.py PYTHON

PYTHON is the interpreter of the project's environment; what is installed there is seen from the new one and not installed
again. Some 20 MB and half a minute; what is there already is kept. Prints the environment's interpreter.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path.home() / ".cache" / "evenflow" / "env-otel"
PACKAGES = ("opentelemetry-sdk>=1.30", "opentelemetry-exporter-otlp-proto-http>=1.30")


def main() -> int:
    """Build it, if it is not the one that is wanted."""
    project = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    where = subprocess.run(
        [project, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    python, stamp = FOLDER / "bin" / "python", FOLDER / "otel.txt"
    wanted = "\n".join((where, *PACKAGES))
    if not stamp.exists() or stamp.read_text() != wanted:
        print("building an environment with OpenTelemetry (half a minute, 20 MB) ...", file=sys.stderr, flush=True)
        subprocess.run([project, "-m", "venv", str(FOLDER)], check=True)
        site = next(FOLDER.glob("lib/python3.*/site-packages"))
        (site / "project.pth").write_text(where + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES], check=True)
        stamp.write_text(wanted)
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
