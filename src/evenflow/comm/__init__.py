"""What model-parallel ranks send each other: collectives, compressors, transports, bytes."""

from evenflow.comm.compressor import DEFAULT_SPECS, Algebra, Compressor, Context, GradientRule, WirePlan, get_compressor

__all__ = ["DEFAULT_SPECS", "Algebra", "Compressor", "Context", "GradientRule", "WirePlan", "get_compressor"]
