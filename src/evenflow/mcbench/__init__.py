"""Does compressing activations help model-parallel training? The benchmark and its cost model."""

from evenflow.mcbench.attach import Compression, compress_model, compression_of, emulate_model

__all__ = ["Compression", "compress_model", "compression_of", "emulate_model"]
