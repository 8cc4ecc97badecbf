"""What an engine is told when it is made. No torch."""
