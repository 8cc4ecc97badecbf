"""Adapters on the host: read strictly, converted once to row files, known by name and digest. No torch."""
