"""An environment of its own for the tests against a server of S3's interface: s3fs, moto and pytest, nothing of ours."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

FOLDER = Path.home() / ".cache" / "evenflow" / "env-remote"
PACKAGES = ("s3fs>=2024.6", "moto[server]>=5", "pytest>=8", "psutil>=6")


def main() -> None:
    """Make it, unless it is there."""
    if (FOLDER / "complete").exists():
        return
    print(f"making {FOLDER} (a minute) ...", flush=True)
    venv.create(FOLDER, with_pip=True)
    subprocess.run([FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    (FOLDER / "complete").touch()


if __name__ == "__main__":
    main()
