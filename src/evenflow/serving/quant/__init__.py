"""Weights in few bits: formats as values, quantising and its inverse. Knows neither models nor kernels."""
