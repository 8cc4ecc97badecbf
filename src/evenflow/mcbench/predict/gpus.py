"""Well-known GPUs by name, so that a fast link is not judged by the arithmetic of the CPU that the question is asked on.

Figures are the makers' data sheets: dense 16-bit arithmetic without sparsity, and memory bandwidth. How much of them training
reaches is assumed and said where it is shown; nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from evenflow.base.errors import RegistryError
from evenflow.comm import get_compressor
from evenflow.mcbench.predict.machine import Curve, Machine

REACHED_ARITHMETIC = 0.4
"""Share of the data sheet's arithmetic that training is assumed to reach."""
REACHED_MEMORY = 0.6
"""Share of the data sheet's memory bandwidth that encoding and decoding are assumed to reach."""
LAUNCH_S = 1e-5
"""Fixed time of one call to encode or decode, assumed: launching its kernels."""
FIXED_S = 2e-5
"""Fixed time of one collective operation, assumed."""
_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One data sheet."""

    tflops: float
    """Dense 16-bit arithmetic in units of 10^12 operations a second."""
    gbyte_per_s: float
    """Memory bandwidth in 10^9 bytes a second."""


GPUS = {
    "v100": Gpu(125.0, 900.0),
    "t4": Gpu(65.0, 320.0),
    "a10": Gpu(125.0, 600.0),
    "a100-40gb": Gpu(312.0, 1555.0),
    "a100-80gb": Gpu(312.0, 2039.0),
    "l4": Gpu(121.0, 300.0),
    "l40s": Gpu(362.0, 864.0),
    "rtx4090": Gpu(165.0, 1008.0),
    "h100-pcie": Gpu(756.0, 2000.0),
    "h100": Gpu(989.0, 3350.0),
    "h200": Gpu(989.0, 4800.0),
    "b200": Gpu(2250.0, 8000.0),
}


def gpu_of(name: str) -> Gpu:
    """Return a GPU by name. Raises RegistryError listing the known ones."""
    if name.lower() not in GPUS:
        raise RegistryError(f"unknown GPU {name!r}; known: {', '.join(GPUS)} (or give --tflops)")
    return GPUS[name.lower()]


def on_gpu(machine: Machine, name: str, itemsize: int) -> Machine:
    """Return the machine with a GPU's arithmetic, and with encoding and decoding bound by its memory.

    A call reads a tensor of ``itemsize`` bytes an element and writes the message, or the other way round: the least that it can
    cost. Fixed times of operations are assumed to be ``FIXED_S``.
    """
    gpu = gpu_of(name)
    byte_per_s = REACHED_MEMORY * gpu.gbyte_per_s * 1e9

    def coding(spec: str) -> Curve:
        import torch

        plan = get_compressor(spec).wire_plan((_ELEMENTS // 1024, 1024), torch.float32)
        element_s = (itemsize + plan.payload_bytes / _ELEMENTS) / byte_per_s
        return Curve(((0.0, LAUNCH_S), (1e9, LAUNCH_S + 1e9 * element_s)))

    coded = {spec: coding(spec) for spec in machine.encode}
    operations = {name: _from(measured) for name, measured in machine.operations.items()}
    arithmetic = ((1, REACHED_ARITHMETIC * gpu.tflops * 1e12),)
    return replace(machine, flop_per_s=arithmetic, encode=coded, decode=coded, operations=operations)


def _from(measured: Curve) -> Curve:
    """Return a curve with the assumed fixed time in the place of the measured one."""
    return Curve(tuple((size, seconds - measured.fixed_s + FIXED_S) for size, seconds in measured.points))
