"""What sharded linears need of a group of tensor-parallel ranks: a protocol, and a world of one.

Sites name who sends: ``o`` and ``down`` (the sums of partial outputs), ``lora.qkv`` and its like (rank-space vectors),
``embedding``, ``logits``.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Group(Protocol):
    """All ranks make the same calls in the same order, with equal shapes."""

    @property
    def rank(self) -> int:
        """Number of this rank."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        ...

    def sum_outputs(self, y_TO: torch.Tensor, site: str) -> torch.Tensor:
        """Sum of all ranks' partial outputs, equal on all ranks; may be compressed, may overwrite ``y_TO``."""
        ...

    def all_reduce(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """Sum of all ranks' ``x``, exact up to the order of additions; may overwrite it."""
        ...

    def all_gather(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """[world_size, *x.shape]: every rank's ``x``."""
        ...


class OneRank:
    """A world of one: nothing to exchange."""

    rank, world_size = 0, 1

    def sum_outputs(self, y_TO: torch.Tensor, site: str) -> torch.Tensor:
        """``y_TO`` itself."""
        return y_TO

    def all_reduce(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """``x`` itself."""
        return x

    def all_gather(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """[1, *x.shape]."""
        return x[None]


__all__ = ["Group", "OneRank"]
