"""One upload per step: what build_batch and the backends' plan() make on the host becomes views of one device buffer.

On the CPU there is nothing to upload: an array is its own view. Elsewhere each array gets a place in a pinned buffer
and, at the same offset, in a device buffer; ``upload`` copies once, without waiting for it. Knows bytes, not what they
mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

_ALIGNMENT = 128
"""Every array starts at a multiple of so many bytes, so that kernels may read it in whole vectors."""


class Staging(Protocol):
    """Arrays of one step on their way to a device."""

    def begin(self) -> None:
        """Start a step: the views of the step before are no longer valid for new kernels."""
        ...

    def add(self, array: np.ndarray, capacity: int | None = None) -> torch.Tensor:
        """The contiguous, one-dimensional ``array`` on the device, once ``upload`` has been called.

        With a ``capacity`` room is kept for so many elements, so that arrays added later lie at the same address
        whatever this one's length. Raises ValueError if it does not fit.
        """
        ...

    def upload(self) -> None:
        """Send everything that was added, on the current stream. Call before the first kernel that reads it."""
        ...


class DirectStaging:
    """For the CPU: an array is its own view."""

    def begin(self) -> None:
        """Nothing to forget."""

    def add(self, array: np.ndarray, capacity: int | None = None) -> torch.Tensor:
        """See Staging."""
        _check(array, capacity)
        return torch.from_numpy(array)

    def upload(self) -> None:
        """Nothing to send."""


@dataclass(slots=True)
class _Buffer:
    host: torch.Tensor
    """uint8, pinned."""
    device: torch.Tensor
    """uint8, as long."""
    used: int = 0
    """Bytes given away."""
    end: int = 0
    """Bytes to copy: the end of the last array's own elements."""


class CopiedStaging:
    """For any other device. One buffer, one copy; a step that needs more gets a further one, and the next step one for all.

    Kernels of a step may read its views until the next step's ``upload``: both are on the current stream.
    """

    def __init__(self, device: torch.device, capacity_bytes: int = 1 << 20) -> None:
        self._device = device
        self._buffers = [self._allocate(capacity_bytes)]
        self._uploaded: torch.cuda.Event | None = None

    def begin(self) -> None:
        """See Staging."""
        if self._uploaded is not None:
            # Usually the last upload is long over, because a step ends when its sampled ids reach the host. But a step that
            # samples nothing does not wait for that.
            self._uploaded.synchronize()
            self._uploaded = None
        if len(self._buffers) > 1:
            self._buffers = [self._allocate(2 * sum(len(buffer.host) for buffer in self._buffers))]
        self._buffers[0].used = self._buffers[0].end = 0

    def add(self, array: np.ndarray, capacity: int | None = None) -> torch.Tensor:
        """See Staging."""
        length = _check(array, capacity)
        size = length * array.itemsize
        buffer = self._buffers[-1]
        if buffer.used + size > len(buffer.host):
            buffer = self._allocate(2 * (len(buffer.host) + size))
            self._buffers.append(buffer)
        start = buffer.used
        buffer.used += -(-size // _ALIGNMENT) * _ALIGNMENT
        buffer.end = start + array.nbytes
        buffer.host.numpy()[start : buffer.end] = array.view(np.uint8)
        dtype = torch.from_numpy(array[:0]).dtype
        return buffer.device[start : start + size].view(dtype)[: len(array) if capacity is None else capacity]

    def upload(self) -> None:
        """See Staging."""
        for buffer in self._buffers:
            buffer.device[: buffer.end].copy_(buffer.host[: buffer.end], non_blocking=True)
        if self._device.type == "cuda":
            self._uploaded = torch.cuda.Event()
            self._uploaded.record()

    def _allocate(self, size: int) -> _Buffer:
        # Made outside inference mode, so that it can be written both inside and outside of it.
        with torch.inference_mode(False):
            host = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            return _Buffer(host, torch.empty(size, dtype=torch.uint8, device=self._device))


def make_staging(device: torch.device) -> Staging:
    """The one that suits ``device``."""
    return DirectStaging() if device.type == "cpu" else CopiedStaging(device)


def _check(array: np.ndarray, capacity: int | None) -> int:
    if capacity is not None and len(array) > capacity:
        raise ValueError(f"{len(array)} elements for a capacity of {capacity}")
    return len(array) if capacity is None else capacity


__all__ = ["CopiedStaging", "DirectStaging", "Staging", "make_staging"]
