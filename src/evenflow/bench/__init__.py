"""Workloads, traces, load generation and measures for serving."""
