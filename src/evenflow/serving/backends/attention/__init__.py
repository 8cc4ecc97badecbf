"""Paged attention: one protocol, and its implementations by device."""
