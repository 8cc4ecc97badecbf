"""Which two elements of a head are rotated together. Backends rotate element i with element i + D / 2, and all of a head.

Models that pair neighbours, or rotate only the first elements, get their columns of q and k gathered so that the backends'
way is theirs. Scores do not change when q and k are reordered alike. Legend: T rows, C fused qkv width, D head_dim.
"""

from __future__ import annotations

import torch

from evenflow.serving.core.shape import ModelShape


class PairedColumns:
    """Gathers the columns of a fused qkv. ``rotary_dim``: elements of each head that are rotated, its first ones.

    ``are_neighbours``: elements 2i and 2i + 1 are pairs; else i and i + rotary_dim / 2.
    """

    def __init__(self, shape: ModelShape, rotary_dim: int, are_neighbours: bool, device: torch.device) -> None:
        half, rest = shape.head_dim // 2, torch.arange(rotary_dim, shape.head_dim)
        rotated = torch.arange(rotary_dim).view(-1, 2).T if are_neighbours else torch.arange(rotary_dim).view(2, -1)
        num_rest = half - rotary_dim // 2
        of_head = torch.cat([rotated[0], rest[:num_rest], rotated[1], rest[num_rest:]])
        num_turned = shape.num_heads + shape.num_kv_heads
        turned = (torch.arange(num_turned)[:, None] * shape.head_dim + of_head).flatten()
        values = torch.arange(len(turned), len(turned) + shape.kv_width)
        self._columns_C = torch.cat([turned, values]).to(device)

    def __call__(self, qkv_TC: torch.Tensor) -> torch.Tensor:
        """A new contiguous [T, C]."""
        return qkv_TC.index_select(1, self._columns_C)


__all__ = ["PairedColumns"]
