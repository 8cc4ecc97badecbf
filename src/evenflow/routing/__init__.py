"""Which of several engines takes a request: decisions only. Knows no tensors, no clock, no HTTP and no Ray."""
