"""Who asks, for which model, and whether they may now."""
