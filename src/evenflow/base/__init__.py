"""Foundations that know nothing of serving, fairness or compression: errors, registries, config."""
