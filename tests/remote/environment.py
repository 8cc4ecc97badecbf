"""An environment of its own for the tests against other people's storage: s3fs, moto, psycopg and pytest, nothing of ours."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

FOLDER = Path.home() / ".cache" / "evenflow" / "env-remote"
PACKAGES = ("s3fs>=2024.6", "moto[server]>=5", "psycopg[binary]>=3.1", "pytest>=8", "psutil>=6")


def main() -> None:
    """Make it, unless it is there with these packages."""
    stamp, wanted = FOLDER / "complete", "\n".join(PACKAGES)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"making {FOLDER} (a minute) ...", flush=True)
    venv.create(FOLDER, with_pip=True)
    subprocess.run([FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
