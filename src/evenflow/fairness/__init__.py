"""Who is served next. Pure Python, no torch, usable on its own: a gateway could import it."""
