"""The server's stand-ins, for tests of what lies around it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "serving" / "server"))
