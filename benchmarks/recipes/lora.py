"""Many adapters: every suite of ``evenflow bench lora`` into one document, in pieces of a few minutes.

    python benchmarks/recipes/lora.py --json benchmarks/results/lora--MACHINE.json --budget 4m [--suite NAME,...]

Run it again until it says that nothing is left. The adapters (2,000 of 135 M-shaped ranks 64, 32, 16, 8: 9.6 GB) and the
model are made at the first run and kept below the user's cache folder, or in --cache-dir.
"""

from __future__ import annotations

import sys

from evenflow.bench.lora.suites import SUITES
from evenflow.cli.main import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--suite" not in arguments:
        arguments += ["--suite", ",".join(SUITES)]
    sys.exit(main(["bench", "lora", *arguments]))
