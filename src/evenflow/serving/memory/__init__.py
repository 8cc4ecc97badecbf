"""Which page belongs to whom and which adapter is where. Bookkeeping only, no torch."""
