"""What is told of single requests, beside figures and accounts: traces, and lines of the log."""
