"""Measuring a server: the cost of its requests and the time of its steps, fitted for replays."""
