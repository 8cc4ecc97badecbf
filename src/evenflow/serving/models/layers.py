"""The small functions of a decoder layer: norms and the gated activation, fused on the CPU, plain torch elsewhere.

Legend: T rows, H hidden, I intermediate width, C fused qkv width, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numba
import numpy as np
import torch
from torch.nn.functional import gelu, layer_norm, rms_norm, silu

from evenflow.serving.backends.lora.side_weights import NormRule
from evenflow.serving.kernels import pointwise_cpu
from evenflow.serving.kernels.simd import element_of
from evenflow.serving.models.family import Activation, NormKind

_SERIAL_NORM_ELEMENTS, _SERIAL_SILU_ELEMENTS = 65536, 16384
"""Up to so many elements one thread is faster: they take about 50 microseconds, and starting others takes longer."""


OwnNorm = Callable[[NormRule, torch.Tensor, torch.Tensor], None]
"""(the norm's rule, x, its norm with the base model's weight, which is changed in place)"""


def _num_threads(num_elements: int, num_serial: int) -> int:
    return 1 if num_elements < num_serial else min(torch.get_num_threads(), numba.get_num_threads())


def _is_fused(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float32)


class Norm(Protocol):
    """A norm over the last axis, in front of or behind a block, or in front of the head."""

    own: OwnNorm | None
    """Where adapters have a weight of their own."""

    def with_weight(self, x_NH: torch.Tensor, weight_NH: torch.Tensor) -> torch.Tensor:
        """The norm of ``x_NH`` with other weights, as checkpoints have them, one for each row: a new [N, H]."""
        ...

    def __call__(self, x_TH: torch.Tensor, delta_TH: torch.Tensor | None = None) -> torch.Tensor:
        """Add ``delta_TH`` to ``x_TH`` in place, if given, and return the norm of the sum: a new [T, H].

        Both are contiguous.
        """
        ...


class RMSNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight, computed in fp32; a Norm. ``weight_H`` may be fp32 whatever x is."""

    def __init__(self, weight_H: torch.Tensor, eps: float) -> None:
        self._weight_H, self._eps = weight_H.contiguous(), np.float32(eps)
        self._width = weight_H.shape[0]
        self._weight_element = element_of(weight_H.dtype.itemsize) if _is_fused(weight_H) else None
        self._address = self._weight_H.data_ptr()
        self.own: OwnNorm | None = None

    def with_weight(self, x_NH: torch.Tensor, weight_NH: torch.Tensor) -> torch.Tensor:
        """See ``Norm``."""
        return (rms_norm(x_NH.float(), (self._width,), None, float(self._eps)) * weight_NH).to(x_NH.dtype)

    def __call__(self, x_TH: torch.Tensor, delta_TH: torch.Tensor | None = None) -> torch.Tensor:
        """See ``Norm``."""
        out_TH = self._of_base(x_TH, delta_TH)
        if self.own is not None:
            self.own(self.with_weight, x_TH, out_TH)
        return out_TH

    def _of_base(self, x_TH: torch.Tensor, delta_TH: torch.Tensor | None) -> torch.Tensor:
        if self._weight_element is None:
            if delta_TH is not None:
                x_TH.add_(delta_TH)
            if x_TH.dtype != self._weight_H.dtype:
                return (rms_norm(x_TH.float(), (self._width,), self._weight_H, float(self._eps))).to(x_TH.dtype)
            return rms_norm(x_TH, (self._width,), self._weight_H, float(self._eps))
        assert x_TH.is_contiguous()
        delta = 0
        if delta_TH is not None:
            assert delta_TH.is_contiguous()
            delta = delta_TH.data_ptr()
        out_TH = torch.empty_like(x_TH)
        num_rows, width = x_TH.shape
        element, threads = element_of(x_TH.dtype.itemsize), _num_threads(num_rows * width, _SERIAL_NORM_ELEMENTS)
        pointwise_cpu.add_and_norm(
            element,
            self._weight_element,
            threads,
            num_rows,
            x_TH.data_ptr(),
            delta,
            out_TH.data_ptr(),
            self._address,
            self._eps,
            width,
        )
        return out_TH


class OnePlusRMSNorm(RMSNorm):
    """RMS norm whose weight is stored less 1 (Gemma). The sum stays in fp32, as it is in the original."""

    def __init__(self, weight_H: torch.Tensor, eps: float) -> None:
        super().__init__(1 + weight_H.float(), eps)

    def with_weight(self, x_NH: torch.Tensor, weight_NH: torch.Tensor) -> torch.Tensor:
        """See ``Norm``."""
        return super().with_weight(x_NH, 1 + weight_NH.float())


class LayerNorm:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight, computed in fp32, without a bias; a Norm (Cohere)."""

    def __init__(self, weight_H: torch.Tensor, eps: float) -> None:
        self._weight_H, self._eps = weight_H, eps
        self.own: OwnNorm | None = None

    def with_weight(self, x_NH: torch.Tensor, weight_NH: torch.Tensor) -> torch.Tensor:
        """See ``Norm``."""
        return (layer_norm(x_NH.float(), x_NH.shape[-1:], eps=self._eps) * weight_NH).to(x_NH.dtype)

    def __call__(self, x_TH: torch.Tensor, delta_TH: torch.Tensor | None = None) -> torch.Tensor:
        """See ``Norm``."""
        if delta_TH is not None:
            x_TH.add_(delta_TH)
        out_TH = layer_norm(x_TH, x_TH.shape[-1:], self._weight_H, eps=self._eps)
        if self.own is not None:
            self.own(self.with_weight, x_TH, out_TH)
        return out_TH


NORMS: Mapping[NormKind, type[RMSNorm] | type[LayerNorm]] = {
    "rms": RMSNorm,
    "rms 1 + w": OnePlusRMSNorm,
    "layer": LayerNorm,
}
"""The class of each kind of norm."""


class HeadNorm:
    """RMS norm of every query head and every key head inside a fused qkv, in place (Qwen3).

    The weights may be fp32 whatever the qkv is.
    """

    def __init__(
        self, q_weight_D: torch.Tensor, k_weight_D: torch.Tensor, num_heads: int, num_kv_heads: int, eps: float
    ) -> None:
        self._q_weight_D, self._k_weight_D, self._eps = q_weight_D.contiguous(), k_weight_D.contiguous(), np.float32(eps)
        self._num_heads, self._num_kv_heads, self._head_dim = num_heads, num_kv_heads, q_weight_D.shape[0]
        self._weight_element = element_of(q_weight_D.dtype.itemsize) if _is_fused(q_weight_D) else None

    def __call__(self, qkv_TC: torch.Tensor) -> None:
        """Overwrites the query and key columns of ``qkv_TC`` (contiguous)."""
        if self._weight_element is None:
            heads_TND = qkv_TC.view(qkv_TC.shape[0], -1, self._head_dim)
            last = 0
            for weight_D, count in ((self._q_weight_D, self._num_heads), (self._k_weight_D, self._num_kv_heads)):
                part_TND = heads_TND[:, last : last + count]
                part_TND.copy_(rms_norm(part_TND.to(weight_D.dtype), (self._head_dim,), weight_D, float(self._eps)))
                last += count
            return
        assert qkv_TC.is_contiguous()
        pointwise_cpu.norm_heads(
            element_of(qkv_TC.dtype.itemsize),
            self._weight_element,
            _num_threads(qkv_TC.numel(), _SERIAL_NORM_ELEMENTS),
            qkv_TC.shape[0],
            qkv_TC.data_ptr(),
            qkv_TC.shape[1],
            self._num_heads,
            self._num_kv_heads,
            self._head_dim,
            self._q_weight_D.data_ptr(),
            self._k_weight_D.data_ptr(),
            self._eps,
        )


def norm_columns(x_TC: torch.Tensor, first: int, weight_W: torch.Tensor, eps: float) -> None:
    """RMS norm of the columns from ``first`` on that ``weight_W`` is for, in place. ``x_TC`` is contiguous."""
    width = weight_W.shape[0]
    if not _is_fused(x_TC):
        part_TW = x_TC[:, first : first + width]
        part_TW.copy_(rms_norm(part_TW.to(weight_W.dtype), (width,), weight_W, eps))
        return
    assert x_TC.is_contiguous()
    address, no_weight = x_TC.data_ptr() + first * x_TC.dtype.itemsize, 0
    pointwise_cpu.norm_heads(
        element_of(x_TC.dtype.itemsize),
        element_of(weight_W.dtype.itemsize),
        _num_threads(x_TC.shape[0] * width, _SERIAL_NORM_ELEMENTS),
        x_TC.shape[0],
        address,
        x_TC.shape[1],
        1,
        0,
        width,
        weight_W.data_ptr(),
        no_weight,
        np.float32(eps),
    )


def silu_and_multiply(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for a fused [gate | up] (contiguous): a new [T, I]."""
    if not _is_fused(gate_up_T2I):
        gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
        return silu(gate_TI).mul_(up_TI)
    return _gated(pointwise_cpu.silu_and_multiply, gate_up_T2I)


def gelu_and_multiply(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """The same with the exact gelu."""
    gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
    return gelu(gate_TI).mul_(up_TI)


def gelu_tanh_and_multiply(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """The same with gelu's approximation by tanh."""
    if not _is_fused(gate_up_T2I):
        gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
        return gelu(gate_TI, approximate="tanh").mul_(up_TI)
    return _gated(pointwise_cpu.gelu_and_multiply, gate_up_T2I)


def _gated(kernel: Callable[..., None], gate_up_T2I: torch.Tensor) -> torch.Tensor:
    assert gate_up_T2I.is_contiguous()
    num_rows, width = gate_up_T2I.shape[0], gate_up_T2I.shape[1] // 2
    out_TI = torch.empty((num_rows, width), dtype=gate_up_T2I.dtype)
    element = element_of(gate_up_T2I.dtype.itemsize)
    threads = _num_threads(num_rows * width, _SERIAL_SILU_ELEMENTS)
    kernel(element, threads, num_rows, gate_up_T2I.data_ptr(), out_TI.data_ptr(), width)
    return out_TI


GateRule = Callable[[torch.Tensor], torch.Tensor]
"""A fused [gate | up] to activation(gate) * up: [T, 2I] to a new [T, I]."""


def gate_rule(activation: Activation) -> GateRule:
    """The function that computes it."""
    return {"silu": silu_and_multiply, "gelu": gelu_and_multiply, "gelu tanh": gelu_tanh_and_multiply}[activation]


__all__ = ["NORMS", "HeadNorm", "Norm", "RMSNorm", "gate_rule", "norm_columns", "silu_and_multiply"]
