"""The console: a live page of who is served, what waits and which adapters are where."""
