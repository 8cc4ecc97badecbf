"""Other ways to serve adapters, for comparison only: merged, padded, gathered, partitioned."""
