"""How near one model is to another: perplexity, divergence and agreement on text."""
