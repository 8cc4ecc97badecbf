"""The console: pages that show a running server, and the stream of figures behind them."""
