"""What the Triton backends ask of their device: the type of products, and how many programs fill it.

On the CPU Triton's interpreter runs the kernels, for tests: a program costs milliseconds whatever its size, so
backends take large blocks there. Knows no kernel of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from evenflow.base.errors import ConfigError

_PRODUCTS = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@dataclass(frozen=True, slots=True)
class TritonDevice:
    """``product``: type of matrix products; ``num_processors``: multiprocessors of the device; ``is_interpreted``."""

    product: tl.dtype
    num_processors: int
    is_interpreted: bool


def triton_device(device: torch.device, dtype: torch.dtype, kernel: object) -> TritonDevice:
    """How ``kernel`` (any of a backend's) runs on ``device``. Raises ConfigError if it cannot, or not in ``dtype``."""
    if dtype not in _PRODUCTS:
        raise ConfigError(f"Triton kernels for {dtype}; allowed: bfloat16, float32")
    is_interpreted = isinstance(kernel, InterpretedFunction)
    if is_interpreted:
        # The interpreter computes with numpy, which has no bf16: operands are widened.
        return TritonDevice(tl.float32, 1, True)
    if device.type != "cuda":
        raise ConfigError(f"Triton kernels on {device}; allowed: a CUDA device (or TRITON_INTERPRET=1, slowly, for tests)")
    return TritonDevice(_PRODUCTS[dtype], torch.cuda.get_device_properties(device).multi_processor_count, False)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << max(n - 1, 0).bit_length()


__all__ = ["TritonDevice", "next_power_of_2", "triton_device"]
