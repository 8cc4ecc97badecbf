"""An adapter's deltas added to the weights of a model of their own: W + B^T A, for comparison with serving them apart.

In fp32 and rounded once, into a copy that is never changed back (adding and subtracting in place drifts).
Legend: O output, I input, R lora_rank.
"""

from __future__ import annotations

import numpy as np
import torch

from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.memory.layout import AdapterPlacement, ArenaLayout, Part, place
from evenflow.serving.models.gated_mlp import GatedMLPWeights
from evenflow.serving.models.weights import ModelWeights


def merge(weights: ModelWeights, layout: ArenaLayout, signature: AdapterSignature, image: np.ndarray) -> None:
    """Add the adapter's deltas to ``weights``, in place. ``image``: its rows in page form, uint8 [num_pages, page_bytes]."""
    placement = place(layout, signature)
    flat = torch.from_numpy(image).view(-1)
    for layer, of_layer in enumerate(weights.layers):
        attention, mlp = of_layer.attention, of_layer.mlp
        assert isinstance(mlp, GatedMLPWeights), "adapters are merged into dense models"
        matrices = {"qkv": attention.qkv, "o": attention.o, "gate_up": mlp.gate_up, "down": mlp.down}
        for site, modules in SITES.items():
            first = 0
            for module in modules:
                outputs = layout.shape.module_widths(module)[1]
                if placement.lora_ranks[layer, MODULES.index(module)]:
                    a_RI = _rows(flat, placement, layer, module, "A", weights.embedding.dtype)
                    b_RO = _rows(flat, placement, layer, module, "B", weights.embedding.dtype)
                    whole_OI = matrices[site]
                    assert isinstance(whole_OI, torch.Tensor), "adapters are merged into weights that are not quantised"
                    part_OI = whole_OI[first : first + outputs]
                    part_OI.copy_(part_OI.float() + b_RO.T @ a_RI)
                first += outputs


def _rows(
    flat: torch.Tensor, placement: AdapterPlacement, layer: int, module: str, part: Part, dtype: torch.dtype
) -> torch.Tensor:
    """A module's rows of A or B: fp32 [R, width]."""
    width = placement.row_width(module, part)
    rows = [flat[offset : offset + width * dtype.itemsize] for offset in placement.row_offsets(layer, module, part).tolist()]
    return torch.stack(rows).view(dtype).float()


__all__ = ["merge"]
