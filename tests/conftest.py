"""Beside this file, so that tests can import ``tolerances``."""
