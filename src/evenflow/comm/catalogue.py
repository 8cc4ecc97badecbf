"""The names of this package's compressors and transports, without torch: what lists and usage texts need."""

from __future__ import annotations

from importlib.metadata import entry_points

from evenflow.base.registry import Registry

COMPRESSORS = Registry(
    "compressor",
    {
        "none": "evenflow.comm.compressors.cast:none",
        "bf16": "evenflow.comm.compressors.cast:bf16",
        "fp16": "evenflow.comm.compressors.cast:fp16",
        "caat": "evenflow.comm.compressors.cast:caat",
        "ae": "evenflow.comm.compressors.autoencoder:autoencoder",
        "topk": "evenflow.comm.compressors.sparsify:topk",
        "topk-bitmap": "evenflow.comm.compressors.sparsify:topk_bitmap",
        "randomk": "evenflow.comm.compressors.sparsify:randomk",
        "randomk-shared": "evenflow.comm.compressors.sparsify:randomk_shared",
        "q8": "evenflow.comm.compressors.channels:q8",
        "q4": "evenflow.comm.compressors.channels:q4",
        "q2": "evenflow.comm.compressors.channels:q2",
        "powersgd": "evenflow.comm.compressors.lowrank:powersgd",
        "subspace": "evenflow.comm.compressors.subspace:subspace",
        "subspace-learned": "evenflow.comm.compressors.subspace:subspace_learned",
        "int8-g32": "evenflow.comm.compressors.quantise:int8_g32",
        "int6-g32": "evenflow.comm.compressors.quantise:int6_g32",
        "int4-g32": "evenflow.comm.compressors.quantise:int4_g32",
        "fp8-g128": "evenflow.comm.compressors.floats:fp8_g128",
        "mxfp8": "evenflow.comm.compressors.floats:mxfp8",
        "mxfp4": "evenflow.comm.compressors.floats:mxfp4",
        "hadamard-int4": "evenflow.comm.compressors.rotate:hadamard_int4",
        "hadamard-fp8": "evenflow.comm.compressors.rotate:hadamard_fp8",
        "srht": "evenflow.comm.compressors.rotate:srht",
        "spike-int2": "evenflow.comm.compressors.outliers:spike_int2",
        "spike-int3": "evenflow.comm.compressors.outliers:spike_int3",
        "outlier-int4": "evenflow.comm.compressors.outliers:outlier_int4",
        "aqsgd": "evenflow.comm.compressors.feedback:aqsgd",
    },
)

SUMMARIES = {
    "none": "the tensor as it is",
    "bf16": "rounded to bfloat16",
    "fp16": "rounded to float16; refuses what is beyond its range",
    "ae:100": "learned auto-encoder of that width",
    "topk:0.1": "largest magnitudes, int32 indices",
    "topk-bitmap:0.1": "largest magnitudes, one bit per position",
    "randomk:0.1": "random entries, indices sent",
    "randomk-shared:0.1": "random entries, shared seed, unbiased",
    "q8": "8 bits, one scale per channel",
    "q4": "4 bits, one scale per channel",
    "q2": "2 bits, one scale per channel",
    "powersgd:50": "low rank by power iteration",
    "int8-g32": "8 bits in groups of 32",
    "int6-g32": "6 bits in groups of 32",
    "int4-g32": "4 bits in groups of 32",
    "fp8-g128": "e4m3 in groups of 128",
    "mxfp8": "OCP microscaling e4m3",
    "mxfp4": "OCP microscaling e2m1",
    "hadamard-int4": "rotated, then int4-g32",
    "hadamard-fp8": "rotated, then fp8-g128",
    "spike-int2": "2 bits, extremes of a group kept",
    "spike-int3": "3 bits, extremes of a group kept",
    "outlier-int4": "int4-g32, the largest channels in bf16",
    "srht:0.1": "subsampled randomised Hadamard transform",
    "aqsgd:4": "quantised delta to the same sample's last visit",
    "subspace:64": "projection on a fixed subspace",
    "subspace-learned:64": "projection on a learned subspace",
    "caat:0.5": "only a share of the channels is summed",
}
"""What each method does, by one usable spec for it."""

DEFAULT_SPECS = tuple(SUMMARIES)
"""One usable spec for every method: what lists, contract suites and benchmarks walk over."""

ENTRY_POINTS = "evenflow.compressors"
"""The entry-point group under which an installed package offers compressors: ``halves = "my_package.halves:Halves"``."""


def installed_compressors() -> dict[str, str]:
    """Return name -> ``module:attribute`` of the compressors that other installed packages offer; built-in names win."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS) if point.name not in COMPRESSORS}


PAPER_SETTINGS = ("A1", "A2", "T1", "T2", "T3", "T4", "R1", "R2", "R3", "R4", "Q1", "Q2", "Q3", "P1", "P2")
"""Settings of the paper's tables; ``paper:SETTING`` is a spec."""

TRANSPORTS = ("all-reduce", "one-shot", "two-shot")
"""The transports a user may name."""
