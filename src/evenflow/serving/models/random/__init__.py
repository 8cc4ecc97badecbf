"""Random models, adapters and tokenizers in ordinary folders, for tests and benchmarks."""
