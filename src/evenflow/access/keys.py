"""API keys: made at random, shown once, kept only as a hash.

A key has 256 random bits, so a plain SHA-256 is enough: there is nothing to guess, and no salt is needed.
"""

from __future__ import annotations

import hashlib
import re
import secrets

PREFIX = "ef-"
"""So that scanners for leaked secrets can find our keys."""

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def new_key() -> str:
    """A fresh random key."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What is stored of ``key``."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_hash(text: str) -> bool:
    """True if ``text`` is what ``hash_key`` makes."""
    return _HASH.fullmatch(text) is not None
