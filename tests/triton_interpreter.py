"""Triton's interpreter, mended for the tests: it truncates fp32 to bf16, where every device rounds, and copies needlessly."""

from __future__ import annotations

import importlib.util

import numpy as np

IS_INSTALLED = importlib.util.find_spec("triton") is not None
"""There is no Triton for some platforms."""


def mend() -> None:
    """From now on the interpreter of this process rounds to the nearest even, as torch and every device. Idempotent."""
    if not IS_INSTALLED:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    if getattr(interpreter, "_is_mended", False):
        return
    convert = interpreter._convert_float

    def convert_and_round(data, input_dtype, output_dtype, rounding_mode):
        if input_dtype == tl.float32 and output_dtype == tl.bfloat16:
            bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
            rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
            return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)
        return convert(data, input_dtype, output_dtype, rounding_mode)

    interpreter._convert_float = convert_and_round
    # Tensors on the CPU are used in place; copying them onto themselves would touch every page of an arena.
    interpreter.GridExecutor._restore_args_dev = lambda self, *args: None
    interpreter._is_mended = True


__all__ = ["IS_INSTALLED", "mend"]
