"""Builds the environment of the console's tests, outside the project: ``python tests/console/environment.py``.

Playwright drives a Chromium that the machine has (Debian: ``apt-get install chromium``, 350 MB); no browser is fetched.
One minute and some 140 MB; what is there already is kept. Prints the environment's interpreter.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path.home() / ".cache" / "evenflow" / "env-console"
PACKAGES = ("playwright>=1.49", "pytest>=8", "httpx")


def main() -> int:
    """Build it, if it is not the one that is wanted."""
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        print("no Chromium was found; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    python, stamp, wanted = FOLDER / "bin" / "python", FOLDER / "packages.txt", "\n".join(PACKAGES)
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        stamp.write_text(wanted)
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
