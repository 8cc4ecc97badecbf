"""Load on OpenAI-compatible servers over HTTP: planned from a seed, sent, timed at the client and summed up by client."""
