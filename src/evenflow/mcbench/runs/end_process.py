"""How a rank ends: at once, when everything it has to say is written."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def end_process(status: int) -> NoReturn:
    """Flush standard output and error and end this process with ``status``, without running any clean-up.

    The threads of a gloo group do not survive the order in which an interpreter takes itself apart: one rank in seven ended by
    an abort, long after its results were written. Whoever calls this has written and closed all its files.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
