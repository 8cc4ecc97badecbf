"""Linear layers and their LoRA deltas, alone or over tensor-parallel ranks."""
