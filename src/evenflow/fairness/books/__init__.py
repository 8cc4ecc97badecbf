"""The books that policies keep: queues, counters, weights and what service costs."""
