"""LoRA over factor rows that lie in the arena: one protocol, and its implementations by device."""
