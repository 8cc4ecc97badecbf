"""One OpenMP runtime for torch and numba, used without getting in each other's way.

numba's OpenMP layer switches nested parallelism on when it starts its threads. From then on every small
matrix product inside a parallel torch operation starts a team of threads of its own: one
``scaled_dot_product_attention`` of 64 tokens went from 0.4 to 48 ms (docs/lab/2026-11-22-threads.md).
"""

from __future__ import annotations

import contextlib
import ctypes

_LIBRARY = "libgomp.so.1"


def share_openmp() -> None:
    """Load the system's OpenMP before torch does, so that torch and numba share one runtime and one pool of threads."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(_LIBRARY, mode=ctypes.RTLD_GLOBAL)


def start_numba_threads() -> None:
    """Start numba's threads now, then switch nested parallelism off again for the calling thread.

    Call it on the thread that computes, before its first kernel. Does nothing more without libgomp.
    """
    import numba

    numba.get_num_threads()  # starts them
    with contextlib.suppress(OSError):
        ctypes.CDLL(_LIBRARY).omp_set_max_active_levels(1)
