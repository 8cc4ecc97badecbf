"""Data parallelism with compressed traffic: gradients of DistributedDataParallel, weights and gradients of FSDP2."""
