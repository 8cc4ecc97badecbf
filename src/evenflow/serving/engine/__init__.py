"""The step loop, in its own process, and its offline facade."""
