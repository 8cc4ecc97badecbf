"""What a server is asked before it is loaded: whether it answers, and which models it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import httpx

from evenflow.base.errors import ConfigError

_LOOK_S = 0.5
_LONGEST_LOOK_S = 10.0


async def served_models(http: httpx.AsyncClient, headers: Mapping[str, str], timeout_s: float) -> list[str]:
    """Names of the server's models, as soon as it lists them.

    Raises ConfigError if it does not within ``timeout_s`` seconds (0: one try), with what it answered last.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        fault = ""
        try:
            response = await http.get("models", headers=headers, timeout=_LONGEST_LOOK_S)
            if response.status_code == 200:
                return [str(entry["id"]) for entry in response.json()["data"]]
            fault = f"answered {response.status_code}: {response.text[:200]}"
        except httpx.HTTPError as error:
            fault = f"{type(error).__name__} {error}"
        except (ValueError, KeyError, TypeError):
            fault = f"answered no list of models: {response.text[:200]}"
        if time.monotonic() >= deadline_s:
            raise ConfigError(f"GET {http.base_url}models: {fault.strip()}")
        await asyncio.sleep(_LOOK_S)
