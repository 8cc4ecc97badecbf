"""Data identified by sha256: a known Python or data version must match, an unknown one is used and reported as unpinned."""

from __future__ import annotations

from evenflow.base.errors import ConfigError

_PINNED = {
    "digits": {"any": "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"},
    "topics": {"3.11.7": "aa4790f28039907878232b5b444de05544457972ddcaf0073ad7c7fe039eb948"},
}


def check_pin(name: str, version: str, digest: str) -> bool:
    """Return whether the data is the pinned one; False if no pin is known. Raises ConfigError if it differs from its pin."""
    pins = _PINNED[name]
    expected = pins.get(version, pins.get("any"))
    if expected is not None and expected != digest:
        raise ConfigError(f"data of {name} has sha256 {digest}; the pinned data of version {version} has {expected}")
    return expected is not None
