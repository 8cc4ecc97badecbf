"""The embedded model, its adapters and its clients."""
