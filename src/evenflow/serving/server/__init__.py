"""The OpenAI-compatible HTTP server: the only place that knows HTTP. No torch."""
