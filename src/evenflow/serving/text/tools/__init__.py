"""Tool calls in a model's text: how each family writes them, read as the text comes. No torch."""
