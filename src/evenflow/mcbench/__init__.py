"""Does compressing activations help model-parallel training? The benchmark and its cost model."""
