"""What every backend stands on: the arena as one tensor, a step as tensors, uploads, products."""
