"""What model-parallel ranks send each other: collectives, compressors, transports, bytes."""
