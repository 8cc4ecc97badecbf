"""Tidewick: the invented harbour town of the embedded model, and the text about it."""
