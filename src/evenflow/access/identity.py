"""Who is asking: from a key, or from what an open server is told, to a client with its weight and limits.

    [admin]
    api_keys = ["sha256:..."]            # may load and unload adapters
    [tiers.gold]
    weight = 4.0
    [clients.alice]
    tier = "gold"                        # her share is weight x the tier's weight; under `hierarchy` tiers share first
    weight = 1.0
    api_keys = ["sha256:..."]            # made by `evenflow keys new alice`
    requests_per_minute = 600
    tokens_per_minute = 200000
    max_queued_requests = 64
    adapters = ["alice-*", "common"]     # the base model is always allowed
    gateway = true                       # her requests name their own client, as on an open server
    tokens_per_month = 50000000          # a budget, also cost_per_month = "20.00" by the prices
    over_budget = "slow"                 # beyond it her weight falls; else requests are refused

Once this file is named, or a key is given on the command line, a key is needed, whatever the file holds, and it alone
says who the client is: no header and no body field can move a request to another client, unless its key is a gateway's.
A server is open, and everyone says who they are, if it was started without keys or opened explicitly.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from evenflow.access.budget import Budget, BudgetFields, budget_of
from evenflow.access.client_headers import CLIENT_HEADERS
from evenflow.access.keys import hash_key, is_hash
from evenflow.base.errors import ConfigError, InvalidKey, InvalidRequest, NotAllowed
from evenflow.fairness.books.weights import HEAVIEST, LIGHTEST

ANONYMOUS = "anonymous"
ADMIN = "admin"
API_KEY_CLIENT = "api-key"
"""The client of the keys that are given on the command line."""
LONGEST_NAME = 256

Weight = Annotated[float, Meta(ge=LIGHTEST, le=HEAVIEST)]
Limit = Annotated[int, Meta(ge=1)]


class _Admin(msgspec.Struct, forbid_unknown_fields=True):
    api_keys: list[str] = []


class _Tier(msgspec.Struct, forbid_unknown_fields=True):
    weight: Weight = 1.0


class _Client(BudgetFields, forbid_unknown_fields=True):
    weight: Weight = 1.0
    tier: str | None = None
    api_keys: list[str] = []
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_queued_requests: Limit | None = None
    adapters: list[str] | None = None
    gateway: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    admin: _Admin = msgspec.field(default_factory=_Admin)
    tiers: dict[str, _Tier] = {}
    clients: dict[str, _Client] = {}


@dataclass(frozen=True, slots=True)
class Client:
    """Who pays for a request, their share and their hard limits (None: no limit)."""

    name: str
    weight: float = 1.0
    """Its own times its tier's."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and output tokens."""
    max_queued_requests: int | None = None
    adapters: tuple[str, ...] | None = None
    """Names or patterns (``*``, ``?``) of the adapters it may use; None: all."""
    is_admin: bool = False
    budget: Budget | None = None
    """For every month; None: none."""
    is_gateway: bool = False
    """Its requests name the client that pays, as on an open server."""

    def may_use(self, adapter: str) -> bool:
        """True if the client may use the adapter of that name."""
        return self.adapters is None or any(fnmatch.fnmatchcase(adapter, pattern) for pattern in self.adapters)


@dataclass(frozen=True, slots=True)
class Directory:
    """Everything clients.toml says, at one moment."""

    clients: Mapping[str, Client] = field(default_factory=dict)
    client_by_hash: Mapping[str, Client] = field(default_factory=dict)
    """Administrators too."""
    needs_key: bool = False
    """True: whoever has no key is refused."""
    client_headers: tuple[str, ...] = CLIENT_HEADERS
    """Headers that may name the client, in lower case; the first one given wins."""
    weight_by_client: Mapping[str, float] = field(default_factory=dict)
    """Own weights, without the tier's, of the clients that differ from 1."""
    tier_by_client: Mapping[str, str] = field(default_factory=dict)
    weight_by_tier: Mapping[str, float] = field(default_factory=dict)

    def holder(self, headers: Mapping[str, str]) -> Client | None:
        """The client whose key the request carries; None on an open server without a known key. Raises InvalidKey."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Anthropic's clients send the key in a header of its own.
        key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
        client = self.client_by_hash.get(hash_key(key)) if key else None
        if client is None and self.needs_key:
            if not key:
                raise InvalidKey("no API key was given; send it as `Authorization: Bearer KEY`")
            raise InvalidKey("this API key is not known to the server")
        return client

    def client(self, holder: Client | None, headers: Mapping[str, str], body_name: tuple[str, str] | None) -> Client:
        """Who pays. ``holder`` is what ``holder()`` said; ``body_name`` is (field, value) of the body's own user, if any.

        Raises InvalidRequest for a name that is no name.
        """
        if holder is not None and not holder.is_gateway and (self.needs_key or not holder.is_admin):
            return holder
        name, where = (ANONYMOUS if holder is None or holder.is_admin else holder.name), ""
        for header in self.client_headers:
            if headers.get(header):
                name, where = header_text(headers[header]), header
                break
        else:
            if body_name is not None and body_name[1]:
                where, name = body_name
        if len(name) > LONGEST_NAME or not name.isprintable() or not name.strip():
            raise InvalidRequest(
                f"{where} is not the name of a client; allowed: 1 to {LONGEST_NAME} printable characters", where
            )
        return self.clients.get(name) or Client(name)

    def require_admin(self, holder: Client | None) -> None:
        """Raise NotAllowed unless the caller may change what the server serves. An open server without any key is open."""
        if (holder is not None and holder.is_admin) or not (self.needs_key or self.client_by_hash):
            return
        if not any(client.is_admin for client in self.client_by_hash.values()):
            raise NotAllowed("no administrator's key is configured: add one to [admin] api_keys")
        if holder is None:
            raise InvalidKey("this needs an administrator's API key; send it as `Authorization: Bearer KEY`")
        raise NotAllowed(f"client {holder.name!r} may not do this: it needs an administrator's API key")


def header_text(value: str) -> str:
    """A header's value as text: UTF-8 where it is that, else ISO 8859-1, as which headers arrive."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def read_directory(
    path: Path | None,
    *,
    api_keys: Sequence[str] = (),
    is_open: bool = False,
    client_headers: tuple[str, ...] = CLIENT_HEADERS,
) -> Directory:
    """Read clients.toml; None: no file. Raises ConfigError, naming the file and what is wrong.

    ``api_keys``: keys of the operator's own, who may change adapters too. ``is_open``: nobody needs a key.
    """
    content = _File() if path is None else _content(path)
    needs_key = not is_open and (path is not None or bool(api_keys))
    clients: dict[str, Client] = {}
    client_by_hash: dict[str, Client] = {hash_key(key): Client(API_KEY_CLIENT, is_admin=True) for key in api_keys}

    def add_keys(client: Client, hashes: list[str], where: str) -> None:
        for number, text in enumerate(hashes):
            if not is_hash(text):  # the text is not shown: it may be a key that somebody pasted
                raise ConfigError(
                    f"{path}: {where}.api_keys[{number}] is not a hash (sha256: and 64 hex digits); use evenflow keys"
                )
            if text in client_by_hash:
                raise ConfigError(f"{path}: {where}.api_keys[{number}] is also a key of {client_by_hash[text].name}")
            client_by_hash[text] = client

    for name, entry in content.clients.items():
        if len(name) > LONGEST_NAME or not name.isprintable() or not name.strip() or name in (ADMIN, API_KEY_CLIENT):
            raise ConfigError(
                f"{path}: clients.{name[:40]!r}: allowed: 1 to {LONGEST_NAME} printable characters, not {ADMIN!r} and not "
                f"{API_KEY_CLIENT!r}"
            )
        if entry.tier is not None and entry.tier not in content.tiers:
            known = ", ".join(sorted(content.tiers)) or "none"
            raise ConfigError(f"{path}: clients.{name}.tier is {entry.tier!r}; known tiers: {known}")
        clients[name] = Client(
            name,
            entry.weight * (content.tiers[entry.tier].weight if entry.tier is not None else 1.0),
            entry.requests_per_minute,
            entry.tokens_per_minute,
            entry.max_queued_requests,
            None if entry.adapters is None else tuple(entry.adapters),
            budget=budget_of(entry, f"{path}: clients.{name}"),
            is_gateway=entry.gateway,
        )
        add_keys(clients[name], entry.api_keys, f"clients.{name}")
    add_keys(Client(ADMIN, is_admin=True), content.admin.api_keys, "admin")
    return Directory(
        clients,
        client_by_hash,
        needs_key,
        client_headers,
        {name: entry.weight for name, entry in content.clients.items() if entry.weight != 1.0},
        {name: entry.tier for name, entry in content.clients.items() if entry.tier is not None},
        {name: tier.weight for name, tier in content.tiers.items()},
    )


def _content(path: Path) -> _File:
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), _File)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {str(error).replace('`', '')}") from None
