"""Tables that say where an adapter's factor rows lie, in the form that the Triton LoRA kernels read. numpy only.

An adapter has one table per site, int64 [layers, 2, R]: the line (byte offset / 64) of each A row, and of each B row, of
the site's modules one after another. R is the sum, over the site's modules, of the module's largest LoRA rank in any
layer; so a module has the same place in the table of every layer. Where a layer has a smaller LoRA rank, the places that
are left over hold -1. Only the tables are padded in this way; the factor rows in the arena are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.memory.layout import AdapterPlacement, ArenaLayout, place

MOST_MODULES = max(len(modules) for modules in SITES.values())
"""Modules of a site: the kernels know three."""


@dataclass(frozen=True, slots=True, eq=False)
class LineTables:
    """What all adapters of one signature share."""

    placement: AdapterPlacement
    factor_row: np.ndarray
    """int64, the tables of all sites one after another: number of the factor row in the placement, -1 where there is none."""
    begins: np.ndarray
    """int64 [sites]: where each site's table begins in ``factor_row``."""
    lora_ranks: np.ndarray
    """int64 [sites, MOST_MODULES + 1]: where each module begins along the axis of R, and in the last column R itself."""

    def lines(self, pages: Sequence[int]) -> np.ndarray:
        """int64, as long as ``factor_row``: the lines when the adapter's rows lie in ``pages``."""
        lines = np.append(self.placement.lines(pages), -1)
        return lines[self.factor_row]


@lru_cache(maxsize=1024)
def line_tables(layout: ArenaLayout, signature: AdapterSignature) -> LineTables:
    """Lay out the tables of every adapter of ``signature``."""
    placement = place(layout, signature)
    tables, lora_ranks = [], np.zeros((len(SITES), MOST_MODULES + 1), np.int64)
    for site, modules in enumerate(SITES.values()):
        indices = [MODULES.index(module) for module in modules]
        widest = placement.lora_ranks[:, indices].max(axis=0)
        ends = np.cumsum(widest)
        lora_ranks[site, 1 : len(modules) + 1] = ends
        lora_ranks[site, len(modules) + 1 :] = ends[-1]
        table = np.full((layout.shape.num_layers, 2, int(ends[-1])), -1, np.int64)
        for index, begin, width in zip(indices, ends - widest, widest):
            number = np.arange(width)
            has_factor_row = number < placement.lora_ranks[:, index, None]
            for part, first in enumerate((placement.first_a, placement.first_b)):
                table[:, part, begin : begin + width] = np.where(has_factor_row, first[:, index, None] + number, -1)
        tables.append(table.reshape(-1))
    sizes = np.array([len(table) for table in tables])
    return LineTables(placement, np.concatenate(tables), np.cumsum(sizes) - sizes, lora_ranks)


__all__ = ["MOST_MODULES", "LineTables", "line_tables"]
