"""Cosines and sines of every position, once per model: what attention backends rotate q and k with.

Legend: P positions, D half of head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from evenflow.serving.models.rope import RopeSpec


def rope_table(
    spec: RopeSpec, head_dim: int, max_len: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), fp32 [P, D] each, for positions 0 .. max_len - 1, times the attention factor.

    Half-split convention (GPT-NeoX): element i of a head is rotated with element i + D. Where only a part of a head is
    rotated, the last angles are 0 (see ``rotated_pairs``), and they have no attention factor.
    A longrope has one table for all sequences: its short factors if ``max_len`` stays inside the original context, else
    the long ones. A dynamic rope equals the default one as far as its original context, and only that far is it
    served (ModelConfig.context_length), so its table is the default one.
    """
    rotary_dim = spec.rotary_dim(head_dim)
    inverse_D = inverse_frequencies(spec, rotary_dim, max_len)
    angles_PD = torch.arange(max_len, dtype=torch.float32)[:, None] * inverse_D[None, :]
    cos_PD, sin_PD = angles_PD.cos() * spec.attention_factor, angles_PD.sin() * spec.attention_factor
    rest = (head_dim - rotary_dim) // 2
    return pad(cos_PD, (0, rest), value=1.0).to(device), pad(sin_PD, (0, rest)).to(device)


def rope_tables(
    specs: Sequence[RopeSpec | None], head_dim: int, max_len: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """The tables of layers with these ropes: (cos, sin, which of them each layer takes). None: a layer that does not rotate.

    fp32 [G, P, D] for G different ropes; [P, D] and an empty tuple if all are the same.
    """
    different = list(dict.fromkeys(specs))
    found = [rope_table(spec, head_dim, max_len, device) if spec is not None else None for spec in different]
    shape = max_len, head_dim // 2
    of_group = [pair or (torch.ones(shape, device=device), torch.zeros(shape, device=device)) for pair in found]
    if len(different) == 1:
        return *of_group[0], ()
    cos_GPD, sin_GPD = (torch.stack(tables) for tables in zip(*of_group))
    return cos_GPD, sin_GPD, tuple(different.index(spec) for spec in specs)


def inverse_frequencies(spec: RopeSpec, rotary_dim: int, max_len: int) -> torch.Tensor:
    """Radians per position, fp32 [rotary_dim / 2]. ``max_len``: positions that are served."""
    wave_D = spec.theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    inverse_D = 1.0 / wave_D
    if spec.kind == "linear":
        return inverse_D / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, inverse_D)
    if spec.kind == "yarn":
        return _yarn(spec, wave_D, rotary_dim)
    if spec.kind == "longrope":
        factors = spec.short_factor if max_len <= spec.original_max_position else spec.long_factor
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * wave_D)
    return inverse_D


def _llama3(spec: RopeSpec, inverse_D: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are stretched, short ones kept, those between interpolated (Llama 3.1)."""
    wavelength_D = 2 * math.pi / inverse_D
    low, high, original = spec.low_freq_factor, spec.high_freq_factor, spec.original_max_position
    smooth_D = (original / wavelength_D - low) / (high - low)
    between_D = (1 - smooth_D) * inverse_D / spec.factor + smooth_D * inverse_D
    stretched_D = torch.where(wavelength_D > original / low, inverse_D / spec.factor, between_D)
    return torch.where(wavelength_D < original / high, inverse_D, stretched_D)


def _yarn(spec: RopeSpec, wave_D: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """NTK-by-parts (YaRN, equations 22-23): a linear ramp over dimensions between stretched and kept."""

    def dimension(rotations: float) -> float:
        return rotary_dim * math.log(spec.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = dimension(spec.beta_fast), dimension(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    ramp_D = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept_D = (1 - ramp_D) * spec.extrapolation_factor
    return 1.0 / (spec.factor * wave_D) * (1 - kept_D) + 1.0 / wave_D * kept_D


__all__ = ["inverse_frequencies", "rope_table", "rope_tables"]
