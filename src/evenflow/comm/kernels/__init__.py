"""Fused CPU kernels of compressors: pure functions of arrays."""
