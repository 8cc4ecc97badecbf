"""LoRA deltas over arena rows: one protocol, and its implementations by device."""
