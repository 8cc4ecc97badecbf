"""The headers that name a client where no key does. Apart from the clients file, so that options can name them anywhere."""

from __future__ import annotations

CLIENT_HEADERS = ("x-evenflow-client", "x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
"""Headers that name the client of an open server or behind a gateway, unless others are chosen; the first one wins."""
