"""Group operations of ranks on one machine's CPU, through memory they share: a tenth of the loopback's latency.

Each rank writes its tensor into a slot of its own and counts up; everyone waits for everyone's count and reads all slots.
Two slots in turn are enough: whoever has published operation i has read everything of operation i - 1, so nobody still
reads the slot that operation i + 1 overwrites. Counters are plain stores after plain stores, which x86 keeps in order
(``is_supported``). Sums are taken in rank order, bf16 and fp16 in fp32 and rounded once, so all ranks hold the same bits.
"""

from __future__ import annotations

import mmap
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evenflow.base.errors import WireError
from evenflow.comm.collectives.collective import Collective

SLOT_BYTES = 1 << 20
"""Larger tensors travel in pieces of this."""

_LINE = 64
_YIELD_S, _CHECK_S = 0.002, 0.1
_PLACE = Path("/dev/shm")


def is_supported() -> bool:
    """True on Linux on x86."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64") and _PLACE.is_dir()


class SharedMemoryCollective:
    """``Collective``: group operations through shared memory; sends and receives through ``inner``, whose ranks are all here.

    ``inner`` also introduces the ranks to each other: a collective call by all of them. Raises WireError on all of them
    if there is too little shared memory, and later if a rank's process is gone.
    """

    def __init__(self, inner: Collective, slot_bytes: int = SLOT_BYTES) -> None:
        self.rank, self.world_size = inner.rank, inner.world_size
        self._inner = inner
        self._slot_bytes = slot_bytes
        number = torch.tensor([int.from_bytes(os.urandom(7), "little"), os.getpid()])
        introductions = inner.all_gather(number)
        self._pids = introductions[:, 1].tolist()
        path = _PLACE / f"evenflow-{int(introductions[0, 0]):014x}"
        size = self.world_size * (_LINE + 2 * slot_bytes)
        handle, fault = self._create(path, size) if self.rank == 0 else (-1, "")
        # All ranks are told whether rank 0 got the memory, so that none of them waits for memory that does not exist.
        if bool(inner.all_gather(torch.tensor([bool(fault), 0])).any()):
            raise WireError(f"there are no {size} bytes of shared memory in {_PLACE}: {fault or 'see rank 0'}")
        if self.rank:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        memory = np.frombuffer(mmap.mmap(handle, size), np.uint8)
        os.close(handle)
        inner.barrier()
        if self.rank == 0:
            path.unlink()  # the memory lives on while it is mapped, and no file is left behind, however the ranks end
        self._counts = memory[: self.world_size * _LINE].view(np.int64)[:: _LINE // 8]
        slots = torch.from_numpy(memory[self.world_size * _LINE :])
        self._slots = slots.view(2, self.world_size, slot_bytes)
        self._count = 0

    @staticmethod
    def _create(path: Path, size: int) -> tuple[int, str]:
        """(file handle, what went wrong or "")."""
        handle = -1
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(handle, 0, size)  # fails here where there is too little, instead of SIGBUS later
            return handle, ""
        except OSError as error:
            if handle >= 0:
                os.close(handle)
                path.unlink()
            return -1, error.strerror or "unknown"

    def all_reduce(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)

        def add(parts: Sequence[Tensor], first: int, last: int) -> None:
            target = out.view(-1)[first:last]
            wide = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else x.dtype
            total = parts[0].to(wide, copy=True)
            for part in parts[1:]:
                total += part
            target.copy_(total)

        self._in_pieces(x.detach().reshape(1, -1), add)
        return out

    def all_gather(self, x: Tensor) -> Tensor:
        out = x.new_empty(self.world_size, *x.shape)
        flat = out.view(self.world_size, -1)

        def place(parts: Sequence[Tensor], first: int, last: int) -> None:
            for rank, part in enumerate(parts):
                flat[rank, first:last] = part

        self._in_pieces(x.detach().reshape(1, -1), place)
        return out

    def all_to_all(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        flat = out.view(self.world_size, -1)

        def place(parts: Sequence[Tensor], first: int, last: int) -> None:
            for rank, part in enumerate(parts):
                flat[rank, first:last] = part.view(self.world_size, last - first)[self.rank]

        self._in_pieces(x.detach().reshape(self.world_size, -1), place)
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        pieces = self.all_to_all(x)
        total = pieces[0].clone()
        for piece in pieces[1:]:
            total += piece
        return total

    def send(self, x: Tensor, to_rank: int) -> None:
        self._inner.send(x, to_rank)

    def receive(self, like: Tensor, from_rank: int) -> Tensor:
        return self._inner.receive(like, from_rank)

    def barrier(self) -> None:
        self._exchange(torch.zeros(1, dtype=torch.uint8))

    def _in_pieces(self, rows: Tensor, take: Callable[[Sequence[Tensor], int, int], None]) -> None:
        """Exchange ``rows`` [W or 1, n] column range by column range; ``take`` gets every rank's flat range and its ends."""
        num_rows, width = rows.shape
        step = max(1, self._slot_bytes // (num_rows * rows.element_size()))
        for first in range(0, width, step):
            last = min(width, first + step)
            take(self._exchange(rows[:, first:last].reshape(-1)), first, last)

    def _exchange(self, flat: Tensor) -> list[Tensor]:
        """Publish ``flat`` and return every rank's, as views that stay valid until the next operation but one."""
        self._count += 1
        slots = self._slots[self._count % 2]
        size = flat.numel() * flat.element_size()
        slots[self.rank, :size].view(flat.dtype).copy_(flat)
        self._counts[self.rank] = self._count
        for rank in range(self.world_size):
            if self._counts[rank] < self._count:
                self._wait(rank)
        return [slots[rank, :size].view(flat.dtype) for rank in range(self.world_size)]

    def _wait(self, rank: int) -> None:
        """Until ``rank`` has published too: at first by giving the core away and looking again, then by sleeping."""
        counts, count = self._counts, self._count
        started_s = checked_s = time.perf_counter()
        while counts[rank] < count:
            os.sched_yield()
            now_s = time.perf_counter()
            if now_s - started_s > _YIELD_S:
                time.sleep(0.0001)
            if now_s - checked_s > _CHECK_S:
                checked_s = now_s
                self._check_alive(rank)

    def _check_alive(self, rank: int) -> None:
        try:
            os.kill(self._pids[rank], 0)
        except ProcessLookupError:
            raise WireError(
                f"rank {self.rank} of {self.world_size}: rank {rank} is gone (process {self._pids[rank]})"
            ) from None
        except PermissionError:
            pass  # the process is there and belongs to another user


__all__ = ["SLOT_BYTES", "SharedMemoryCollective", "is_supported"]
