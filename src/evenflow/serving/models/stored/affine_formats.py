"""Whole numbers with a scale and a zero for each group: GPTQ, AWQ, compressed-tensors, bitsandbytes' int8, and our own.

w[o, i] = scale[o, g] (code[o, i] - zero[o, g]). Groups of a multiple of 32 inputs are held exactly, in groups of 32. Others,
and GPTQ's act-order, where the inputs of a group lie anywhere, are widened. Legend: O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from evenflow.base.errors import ModelError
from evenflow.serving.models.checkpoint import Checkpoint
from evenflow.serving.models.stored.quantization_config import QuantizationConfig
from evenflow.serving.quant.grouped_matrix import GroupedMatrix
from evenflow.serving.quant.schemes import GROUP

Affine = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""codes uint8 [O, I], scales [O, G], zeros int32 [O, G] (None: half the range), group of each input [I] (None: in order)."""

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of each nibble in a word of AWQ (``AWQ_PACK_ORDER``)."""


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., n] to uint8 [..., n * 32 / bits]: the lowest bits of a word first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def gptq(files: Checkpoint, module: str, config: QuantizationConfig) -> Affine:
    """qweight [I / per word, O] packed along inputs, qzeros [G, O / per word], scales [G, O], g_idx [I]."""
    codes = unpack_words(files.raw(f"{module}.qweight").T.contiguous(), config.bits)
    scales = files.raw(f"{module}.scales").T
    zeros = unpack_words(files.raw(f"{module}.qzeros"), config.bits).to(torch.int32).T + config.zero_offset
    zeros = zeros[: len(codes)]
    g_idx = files.raw(f"{module}.g_idx").long() if f"{module}.g_idx" in files.shapes else None
    inputs = codes.shape[1]
    size = inputs if config.group_size == -1 else config.group_size
    in_order = torch.arange(inputs) // size
    return codes, scales, zeros, None if g_idx is None or torch.equal(g_idx, in_order) else g_idx


def awq(files: Checkpoint, module: str, config: QuantizationConfig) -> Affine:
    """qweight [I, O / 8] and qzeros [G, O / 8], packed along outputs in an order of their own, scales [G, O]."""
    codes, zeros = (
        unpack_words(files.raw(f"{module}.{name}"), 4).unflatten(-1, (-1, 8))[..., _inverse(_AWQ_ORDER)].flatten(-2).T
        for name in ("qweight", "qzeros")
    )
    return codes.contiguous(), files.raw(f"{module}.scales").T, zeros.to(torch.int32), None


def _inverse(order: tuple[int, ...]) -> list[int]:
    return [order.index(i) for i in range(len(order))]


def compressed(files: Checkpoint, module: str, config: QuantizationConfig) -> Affine:
    """weight_packed [O, I / per word] of codes offset by half their range, or weight int8 [O, I]; weight_scale [O, G]."""
    offset = 1 << (config.bits - 1)
    if f"{module}.weight_packed" in files.shapes:
        codes = unpack_words(files.raw(f"{module}.weight_packed"), config.bits)
        codes = codes[:, : int(files.raw(f"{module}.weight_shape")[1])].contiguous()
    else:
        codes = (files.raw(f"{module}.weight").to(torch.int16) + offset).to(torch.uint8)
    scales = files.raw(f"{module}.weight_scale").reshape(-1, max(1, files.raw(f"{module}.weight_scale").shape[-1:].numel()))
    scales = scales.expand(len(codes), -1)
    zeros = None
    if f"{module}.weight_zero_point" in files.shapes:
        stored = files.raw(f"{module}.weight_zero_point")
        if stored.dtype == torch.int32 and config.kind == "pack-quantized":
            zeros = unpack_words(stored.T.contiguous(), config.bits).T[: len(codes)].to(torch.int32)
        else:
            zeros = stored.reshape(-1, stored.shape[-1]).to(torch.int32).expand(len(codes), -1) + offset
    g_idx = files.raw(f"{module}.weight_g_idx").long() if f"{module}.weight_g_idx" in files.shapes else None
    return codes, scales, zeros, g_idx


def int8(files: Checkpoint, module: str, config: QuantizationConfig) -> Affine:
    """bitsandbytes' LLM.int8: weight int8 [O, I], SCB [O], the largest magnitude of each output."""
    codes = (files.raw(f"{module}.weight").to(torch.int16) + 128).to(torch.uint8)
    return codes, (files.raw(f"{module}.SCB").float() / 127).unsqueeze(-1), None, None


READERS: dict[str, Callable[[Checkpoint, str, QuantizationConfig], Affine]] = {
    "gptq": gptq,
    "awq": awq,
    "compressed-tensors": compressed,
    "bitsandbytes": int8,
}


def _checked(module: str, affine: Affine) -> int:
    """Inputs of a group. Raises ModelError where groups do not divide the inputs."""
    codes, scales, zeros, g_idx = affine
    inputs, groups = codes.shape[1], scales.shape[1]
    if scales.shape[0] != codes.shape[0] or (zeros is not None and zeros.shape != scales.shape) or not groups:
        raise ModelError(f"{module}: scales and zeros do not fit {list(codes.shape)} codes; the file is damaged")
    if g_idx is None and inputs % groups:
        raise ModelError(f"{module}: {groups} groups do not divide {inputs} inputs")
    if g_idx is not None and (len(g_idx) != inputs or int(g_idx.min()) < 0 or int(g_idx.max()) >= groups):
        raise ModelError(f"{module}: g_idx names groups that there are not")
    return inputs // groups


def grouped(module: str, affine: Affine, bits: int) -> GroupedMatrix | None:
    """Exactly the matrix, or None if its groups are no runs of a multiple of 32 inputs."""
    size = _checked(module, affine)
    codes, scales, zeros, g_idx = affine
    if g_idx is not None or size % GROUP:
        return None
    repeats = size // GROUP
    offset = 1 << (bits - 1)
    wide = scales.float()
    minima = None if zeros is None or bool((zeros == offset).all()) else -wide * zeros
    parts = [wide] if minima is None else [wide, minima]
    fits = all(torch.equal(part.half().float(), part) for part in parts)
    kept = [(part.half() if fits else part).repeat_interleave(repeats, dim=1).contiguous() for part in parts]
    return GroupedMatrix(codes, kept[0], None if minima is None else kept[1], bits)


def widened(module: str, affine: Affine, bits: int) -> torch.Tensor:
    """The matrix in fp32."""
    size = _checked(module, affine)
    codes, scales, zeros, g_idx = affine
    of_input = torch.arange(codes.shape[1]) // size if g_idx is None else g_idx
    centred = codes.float() - ((1 << (bits - 1)) if zeros is None else zeros[:, of_input])
    return centred * scales.float()[:, of_input]


__all__ = ["READERS", "Affine", "awq", "compressed", "gptq", "grouped", "int8", "unpack_words", "widened"]
