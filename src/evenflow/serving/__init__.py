"""One base model, many adapters, many clients: the serving path."""
