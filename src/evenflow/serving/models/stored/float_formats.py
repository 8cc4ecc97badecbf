"""Floats of few bits: FP8 with scales, and bitsandbytes' NF4 and FP4. They are widened when they are loaded."""

from __future__ import annotations

import json

import torch

from evenflow.base.errors import ModelError
from evenflow.serving.models.checkpoint import Checkpoint


def fp8(files: Checkpoint, module: str, block: tuple[int, int] | None) -> torch.Tensor:
    """fp32 [O, I] of float8 numbers times ``weight_scale_inv`` or ``weight_scale``: one, one an output, or one a block.

    Both names mean what is multiplied with (transformers' FineGrainedFP8, and compressed-tensors). ``block``: outputs and
    inputs that share a scale, of which the last may be fewer.
    """
    weight = files.raw(f"{module}.weight").float()
    name = next((n for n in ("weight_scale_inv", "weight_scale") if f"{module}.{n}" in files.shapes), None)
    if name is None:
        raise ModelError(f"{module} has float8 weights and neither weight_scale nor weight_scale_inv")
    scale = files.raw(f"{module}.{name}").float()
    if scale.numel() == 1:
        return weight * scale.reshape(())
    outputs, inputs = weight.shape
    high, wide = block or (1, inputs)
    scale = scale.reshape(len(scale), -1)
    if scale.shape != (-(-outputs // high), -(-inputs // wide)):
        raise ModelError(
            f"{module}: {list(scale.shape)} scales for blocks of {high} x {wide} do not fit {[outputs, inputs]} weights"
        )
    return weight * scale.repeat_interleave(high, 0)[:outputs].repeat_interleave(wide, 1)[:, :inputs]


def four_bits(files: Checkpoint, name: str, kind: str) -> torch.Tensor:
    """fp32 of bitsandbytes' 4-bit weights ``name``: a table's numbers times the largest magnitude of each block.

    Two numbers a byte, the first in the high half. Largest magnitudes may themselves be quantised (double quantisation).
    """
    state_name = f"{name}.quant_state.bitsandbytes__{kind}"
    if state_name not in files.shapes:
        raise ModelError(f"{name} has no {state_name.rpartition('.')[2]}: it was not saved by bitsandbytes as {kind}")
    try:
        state = json.loads(bytes(files.raw(state_name).tolist()))
        shape, blocksize = [int(n) for n in state["shape"]], int(state["blocksize"])
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{state_name} cannot be read") from None
    packed, table = files.raw(name).view(torch.uint8).flatten(), files.raw(f"{name}.quant_map").float()
    absmax = files.raw(f"{name}.absmax")
    if absmax.dtype == torch.uint8:
        nested = files.raw(f"{name}.nested_absmax").float().repeat_interleave(int(state["nested_blocksize"]))[: len(absmax)]
        absmax = files.raw(f"{name}.nested_quant_map").float()[absmax.long()] * nested + float(state["nested_offset"])
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()
    total = shape[0] * shape[1]
    if len(codes) < total or len(absmax) * blocksize < total:
        raise ModelError(f"{name}: there are fewer weights than its shape {shape} says")
    values = table[codes[:total].long()] * absmax.float().repeat_interleave(blocksize)[:total]
    return values.view(shape)


def four_bits_shape(files: Checkpoint, name: str, kind: str) -> tuple[int, ...]:
    """Shape of the matrix, from its state."""
    state = f"{name}.quant_state.bitsandbytes__{kind}"
    try:
        return tuple(int(n) for n in json.loads(bytes(files.raw(state).tolist()))["shape"])
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{state} cannot be read") from None


__all__ = ["four_bits", "four_bits_shape", "fp8"]
