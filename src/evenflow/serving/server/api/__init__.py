"""The endpoints, and what a running server holds for them."""
