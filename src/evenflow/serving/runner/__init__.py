"""Tensors of one rank: it runs plans and decides nothing."""
