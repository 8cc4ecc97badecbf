"""Traces and workloads through the shipped scheduler on a virtual clock."""
