"""A fixed number of compute threads while something is measured or compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def compute_threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads inside the block, and with as many as before after it.

    Products and sums of floats are shared out over threads, and how decides their last bits; so results are comparable, and
    virtual ranks give the bits of real ones, only at equal counts.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
