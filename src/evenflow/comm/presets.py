"""The settings of the paper's tables, in its form: A1 A2 T1-T4 R1-R4 Q1-Q3 P1 P2.

Sizes follow from shapes as in the authors' scripts. With n = rows * h elements, fp16 values and int64 indices, an
auto-encoder of width c sends 2 rows c bytes; Top-K and Random-K send 10 k bytes. T1, T2 (R1, R2) have the same bytes as A1, A2:
k = rows c / 5. T3, T4 (R3, R4) have the same number of elements: k = rows c. P1 and P2 are the ranks 50 and 100 of the
shipped scripts, with an fp64 wire and one matrix per sequence. What was wrong and not a choice
stays corrected: sums, not means.

The widths are those of BERT-large (h = 1024). ``paper:A1:0.0625`` is A1 for a model a sixteenth as wide: widths 50 and 100
become 3 and 6, so that the share of what is sent stays the paper's.
"""

from __future__ import annotations

import torch

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.comm.catalogue import PAPER_SETTINGS
from evenflow.comm.compressor import Compressor, Shape, num_elements, rows_and_width
from evenflow.comm.compressors.autoencoder import AutoEncoder
from evenflow.comm.compressors.channels import ChannelInt
from evenflow.comm.compressors.lowrank import PowerSGD
from evenflow.comm.compressors.sparsify import CountRule, RandomK, TopK
from evenflow.comm.spec_arguments import fraction

WIDTHS = {"1": 50, "2": 100}


def _width(number: str, scale: float) -> int:
    return max(1, round(WIDTHS[number] * scale))


def _count(setting: str, code_width: int, divisor: int) -> CountRule:
    def rule(shape: Shape) -> int:
        rows, _ = rows_and_width(shape)
        k = max(1, rows * code_width // divisor)
        if k > num_elements(shape):
            raise ConfigError(f"paper:{setting}: k = {k} is larger than the tensor of shape {tuple(shape)}")
        return k

    return rule


def paper_preset(text: str) -> Compressor:
    """Return the compressor of one of the paper's settings, ``A1`` or ``A1:scale``.

    Raises RegistryError listing the known settings, and ConfigError for a scale that is not above 0 and at most 1.
    """
    setting, colon, scale_text = text.partition(":")
    if setting not in PAPER_SETTINGS:
        raise RegistryError(f"unknown paper setting {setting!r}; known: {', '.join(PAPER_SETTINGS)}")
    scale = fraction(f"paper:{setting}", scale_text) if colon else 1.0
    family, number = setting[0], setting[1]
    if family == "A":
        return AutoEncoder(_width(number, scale))
    if family == "P":
        return PowerSGD(_width(number, scale), torch.float64, is_batched=True)
    if family == "Q":
        return ChannelInt({"1": 2, "2": 4, "3": 8}[number], is_paper_form=True)
    code_width, divisor = {"1": ("1", 5), "2": ("2", 5), "3": ("1", 1), "4": ("2", 1)}[number]
    kind = TopK if family == "T" else RandomK
    return kind(_count(setting, _width(code_width, scale), divisor), torch.int64, torch.float16)
