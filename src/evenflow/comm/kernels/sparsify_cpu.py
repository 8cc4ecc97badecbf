"""Top-K selection on the CPU in three passes over the tensor instead of a partial sort.

Absolute values of floats order like their bit patterns, so a histogram of the upper 16 bits finds the bin that holds the k-th
largest, a second one of the lower 16 bits within that bin finds its exact value, and a third pass collects. Of equal
values the first ones are taken. NaN and infinity are the largest of all.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor


@numba.njit(nogil=True, cache=True)
def _find(histogram, wanted):  # type: ignore[no-untyped-def]
    """Return (bin of the wanted-th largest, how many are still wanted inside it)."""
    b = histogram.size - 1
    while histogram[b] < wanted:
        wanted -= histogram[b]
        b -= 1
    return b, wanted


@numba.njit(nogil=True, cache=True)
def _select(bits, k, out):  # type: ignore[no-untyped-def]
    """Write the indices of the k largest |x| (bits: uint32 patterns) to out [k], ascending."""
    sign_off = np.uint32(0x7FFFFFFF)
    upper = np.zeros(1 << 15, np.int64)
    for i in range(bits.size):
        upper[(bits[i] & sign_off) >> np.uint32(16)] += 1
    high, wanted = _find(upper, k)
    lower = np.zeros(1 << 16, np.int64)
    for i in range(bits.size):
        pattern = bits[i] & sign_off
        if (pattern >> np.uint32(16)) == np.uint32(high):
            lower[pattern & np.uint32(0xFFFF)] += 1
    low, ties = _find(lower, wanted)
    threshold = np.uint32((high << 16) | low)
    filled = 0
    for i in range(bits.size):
        pattern = bits[i] & sign_off
        if pattern > threshold:
            out[filled] = i
            filled += 1
        elif pattern == threshold and ties > 0:
            out[filled] = i
            filled += 1
            ties -= 1


def can_take(flat: Tensor) -> bool:
    """Return whether ``largest`` works on this tensor: on the CPU, contiguous, fp32."""
    return flat.device.type == "cpu" and flat.dtype == torch.float32 and flat.is_contiguous()


def largest(flat: Tensor, k: int) -> Tensor:
    """Return the ascending int64 indices of the k largest magnitudes of fp32 ``flat``; 1 <= k <= n."""
    out = torch.empty(k, dtype=torch.int64)
    _select(flat.view(torch.uint32).numpy(), k, out.numpy())
    return out
