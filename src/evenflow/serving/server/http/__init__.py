"""What HTTP asks for: bodies, event streams, error answers, the OpenAPI document."""
