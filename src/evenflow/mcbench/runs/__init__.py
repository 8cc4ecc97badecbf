"""One run of the benchmark: its configuration, its ranks, its training loop and its measurements."""
