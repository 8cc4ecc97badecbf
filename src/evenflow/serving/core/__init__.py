"""Requests, adapters and plans: the values that travel between floors. No torch."""
