"""A matrix as codes in groups of 32 inputs, each with a scale and perhaps a minimum: the form that checkpoints come in,
and that kernels' packed forms are made from.

Its ``dequantise`` is the meaning of every format here, and the oracle of every product. Legend: O outputs, I inputs,
G groups of 32 inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evenflow.base.errors import ModelError
from evenflow.serving.quant.schemes import GROUP, Scheme

_ROWS_AT_ONCE_ELEMENTS = 1 << 19
"""Elements that are quantised at a time: temporaries stay in the caches."""


@dataclass(frozen=True, slots=True)
class GroupedMatrix:
    """w[o, i] = scale[o, g] (code[o, i] - offset), or scale[o, g] code[o, i] + minimum[o, g], with g = i // 32."""

    codes_OI: torch.Tensor
    """uint8, below 2^bits."""
    scales_OG: torch.Tensor
    """float16 or float32."""
    minima_OG: torch.Tensor | None
    """As the scales; None: codes are symmetric, and their offset is half their range."""
    bits: int
    """4 or 8."""

    def __post_init__(self) -> None:
        outputs, inputs = self.codes_OI.shape
        assert self.bits in (4, 8)
        assert self.codes_OI.dtype == torch.uint8
        assert self.scales_OG.shape == (outputs, -(-inputs // GROUP)), (self.codes_OI.shape, self.scales_OG.shape)
        assert self.scales_OG.dtype in (torch.float16, torch.float32)
        assert self.minima_OG is None or (self.minima_OG.shape, self.minima_OG.dtype) == (
            self.scales_OG.shape,
            self.scales_OG.dtype,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """[O, I]."""
        outputs, inputs = self.codes_OI.shape
        return outputs, inputs

    @property
    def offset(self) -> int:
        """The code of zero; 0 where there are minima."""
        return 0 if self.minima_OG is not None else 1 << (self.bits - 1)

    def dequantise(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[O, I], computed in fp32 and rounded once."""
        outputs, inputs = self.shape
        whole = torch.nn.functional.pad(self.codes_OI, (0, -inputs % GROUP)).view(outputs, -1, GROUP).float()
        if self.minima_OG is None:
            values = (whole - self.offset) * self.scales_OG.float().unsqueeze(-1)
        else:
            values = torch.addcmul(self.minima_OG.float().unsqueeze(-1), whole, self.scales_OG.float().unsqueeze(-1))
        return values.view(outputs, -1)[:, :inputs].to(dtype)

    def part(self, rows: range, columns: range | None = None) -> GroupedMatrix:
        """Some outputs, and some inputs. Raises ModelError if the inputs do not begin and end with groups."""
        inputs = self.shape[1]
        columns = columns or range(inputs)
        if columns.start % GROUP or (columns.stop % GROUP and columns.stop != inputs):
            raise ModelError(
                f"a rank would hold inputs {columns.start} to {columns.stop} of a quantised matrix; allowed: whole groups of "
                f"{GROUP}: fewer ranks divide it so"
            )
        groups = slice(columns.start // GROUP, -(-columns.stop // GROUP))
        some = slice(rows.start, rows.stop)
        return GroupedMatrix(
            self.codes_OI[some, columns.start : columns.stop],
            self.scales_OG[some, groups],
            None if self.minima_OG is None else self.minima_OG[some, groups],
            self.bits,
        )

    def takes_after(self, other: GroupedMatrix) -> bool:
        """True if both have the same bits, minima or none, and type of scales, so that they can be one matrix."""
        mine, others = ((each.bits, each.minima_OG is None, each.scales_OG.dtype, each.shape[1]) for each in (self, other))
        return mine == others


def stack(matrices: Sequence[GroupedMatrix]) -> list[GroupedMatrix]:
    """The matrices' outputs one after another, as few matrices as their formats allow."""
    found: list[list[GroupedMatrix]] = []
    for matrix in matrices:
        if found and found[-1][0].takes_after(matrix):
            found[-1].append(matrix)
        else:
            found.append([matrix])
    return [some[0] if len(some) == 1 else _joined(some) for some in found]


def _joined(matrices: Sequence[GroupedMatrix]) -> GroupedMatrix:
    minima = [matrix.minima_OG for matrix in matrices if matrix.minima_OG is not None]
    return GroupedMatrix(
        torch.cat([matrix.codes_OI for matrix in matrices]),
        torch.cat([matrix.scales_OG for matrix in matrices]),
        torch.cat(minima) if minima else None,
        matrices[0].bits,
    )


def quantise(weight_OI: torch.Tensor, scheme: Scheme) -> GroupedMatrix:
    """The nearest codes of a floating-point matrix, with scales of 16 bits. Raises ModelError for NaN and infinity.

    8 bits: the largest magnitude is 127. 4 bits: of a few scales for each group the one with the least squared error.
    """
    outputs, inputs = weight_OI.shape
    num_groups = -(-inputs // GROUP)
    codes = torch.empty(outputs, num_groups * GROUP, dtype=torch.uint8)
    scales = torch.empty(outputs, num_groups, dtype=torch.float16)
    minima = torch.empty_like(scales) if scheme.has_minima else None
    step = max(1, _ROWS_AT_ONCE_ELEMENTS // max(1, inputs))
    for first in range(0, outputs, step):
        rows = slice(first, min(first + step, outputs))
        part = torch.nn.functional.pad(weight_OI[rows].float(), (0, -inputs % GROUP)).view(-1, num_groups, GROUP)
        if not torch.isfinite(part).all():
            raise ModelError("a weight is not finite; allowed: numbers")
        code, scale, minimum = _fit(part, scheme)
        codes[rows] = code.view(code.shape[0], -1)
        scales[rows] = scale
        if minima is not None and minimum is not None:
            minima[rows] = minimum
    if not torch.isfinite(scales).all():
        raise ModelError("a weight is beyond 65504 times the largest code; float16 scales do not reach so far")
    return GroupedMatrix(codes[:, :inputs].contiguous() if inputs % GROUP else codes, scales, minima, scheme.bits)


_Fit = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Codes uint8 [..., 32], scales float16 [...], minima float16 [...] or None."""


def _fit(groups: torch.Tensor, scheme: Scheme) -> _Fit:
    if scheme.has_minima:
        return _fit_minima(groups, scheme.bits)
    if scheme.bits == 8:
        return _symmetric(groups, groups.abs().amax(-1) / 127, 8)
    # The largest magnitude becomes -8 or, with a scale of a little more or less, what is best for the others.
    low, high = groups.aminmax(dim=-1)
    signed = torch.where(-low > high, low, high)
    return _best([_symmetric(groups, signed / -level, 4) for level in (8.0, 7.0, 7.5, 8.6)], groups, 8)


def _symmetric(groups: torch.Tensor, scale: torch.Tensor, bits: int) -> _Fit:
    scale = scale.to(torch.float16)
    inverse = torch.where(scale != 0, 1 / scale.float(), 0.0)
    offset = 1 << (bits - 1)
    codes = (groups * inverse.unsqueeze(-1)).round_().add_(offset).clamp_(0, 2 * offset - 1)
    return codes.to(torch.uint8), scale, None


def _fit_minima(groups: torch.Tensor, bits: int) -> _Fit:
    top = (1 << bits) - 1
    low, high = groups.aminmax(dim=-1)
    found = []
    for shrink in (0.0, 0.04, 0.08):
        inset = (high - low) * shrink
        minimum = (low + inset).to(torch.float16)
        scale = ((high - inset - minimum.float()) / top).clamp_min(0).to(torch.float16)
        inverse = torch.where(scale != 0, 1 / scale.float(), 0.0)
        codes = ((groups - minimum.float().unsqueeze(-1)) * inverse.unsqueeze(-1)).round_().clamp_(0, top)
        found.append((codes.to(torch.uint8), scale, minimum))
    return _best(found, groups, 0)


def _best(candidates: Sequence[_Fit], groups: torch.Tensor, offset: int) -> _Fit:
    """Group by group the candidate with the least squared error, the first of several."""
    codes, scales, minima = candidates[0]
    least = _error(candidates[0], groups, offset)
    for candidate in candidates[1:]:
        error = _error(candidate, groups, offset)
        is_better = error < least
        least = torch.where(is_better, error, least)
        codes = torch.where(is_better.unsqueeze(-1), candidate[0], codes)
        scales = torch.where(is_better, candidate[1], scales)
        if minima is not None and candidate[2] is not None:
            minima = torch.where(is_better, candidate[2], minima)
    return codes, scales, minima


def _error(fit: _Fit, groups: torch.Tensor, offset: int) -> torch.Tensor:
    codes, scales, minima = fit
    values = (codes.float() - offset) * scales.float().unsqueeze(-1)
    if minima is not None:
        values += minima.float().unsqueeze(-1)
    return (values - groups).square_().sum(-1)


__all__ = ["GroupedMatrix", "quantise", "stack"]
