"""How a server is told which client a request is of: by a header, by the field `user`, or by an API key of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evenflow.access.client_headers import CLIENT_HEADERS
from evenflow.base.errors import ConfigError


class Naming(Protocol):
    """Marks requests of a client."""

    def headers(self, client: str) -> Mapping[str, str]:
        """Headers that its requests carry."""
        ...

    def fields(self, client: str) -> Mapping[str, Any]:
        """Fields that its bodies carry."""
        ...


@dataclass(frozen=True, slots=True)
class ByHeader:
    """A header holds the client's name; every request has the same API key, if there is one."""

    header: str = CLIENT_HEADERS[0]
    api_key: str | None = None

    def headers(self, client: str) -> Mapping[str, str]:
        """See Naming."""
        return {self.header: client, **_authorization(self.api_key)}

    def fields(self, client: str) -> Mapping[str, Any]:
        """See Naming."""
        return {}


@dataclass(frozen=True, slots=True)
class ByUser:
    """OpenAI's field ``user`` holds the client's name."""

    api_key: str | None = None

    def headers(self, client: str) -> Mapping[str, str]:
        """See Naming."""
        return _authorization(self.api_key)

    def fields(self, client: str) -> Mapping[str, Any]:
        """See Naming."""
        return {"user": client}


@dataclass(frozen=True, slots=True)
class ByKey:
    """Each client has an API key of its own."""

    keys: Mapping[str, str]

    def headers(self, client: str) -> Mapping[str, str]:
        """See Naming."""
        return _authorization(self.keys[client])

    def fields(self, client: str) -> Mapping[str, Any]:
        """See Naming."""
        return {}


def parse_naming(text: str, api_key: str | None, keys_file: Path | None) -> Naming:
    """Read ``header``, ``header:NAME``, ``user`` or ``key``. Raises ConfigError."""
    kind, _, argument = text.partition(":")
    if kind == "key":
        if keys_file is None:
            raise ConfigError("--client-as key needs --client-keys FILE, with a line `NAME KEY` for each client")
        return ByKey(read_keys(keys_file))
    if keys_file is not None:
        raise ConfigError(f"--client-keys is read with --client-as key, not {text}")
    if kind == "user" and not argument:
        return ByUser(api_key)
    if kind == "header" and (argument or ":" not in text):
        return ByHeader(argument or CLIENT_HEADERS[0], api_key)
    raise ConfigError(f"--client-as is {text!r}; allowed: header, header:NAME, user, key")


def read_keys(path: Path) -> dict[str, str]:
    """Read lines ``NAME KEY``; empty ones and those that begin with # are left out. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--client-keys {path} cannot be read: {error}") from None
    keys = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            if len(words) != 2 or not words[1].isascii():
                raise ConfigError(f"{path} line {number}: not of the form NAME KEY")
            keys[words[0]] = words[1]
    if not keys:
        raise ConfigError(f"{path} names no client; wanted: lines of the form NAME KEY")
    return keys


def _authorization(api_key: str | None) -> Mapping[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}
