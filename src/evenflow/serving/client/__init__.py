"""The near side of an engine process: how it is started, spoken to and ended. No torch."""
