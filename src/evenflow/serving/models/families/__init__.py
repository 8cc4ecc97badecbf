"""One file for each model family: what tells it from the others."""
