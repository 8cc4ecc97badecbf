"""What an adapter may be called, and what is said of names that nobody may use."""

from __future__ import annotations

LONGEST_NAME = 255
"""Characters of an adapter's name."""


def no_such_model(name: str) -> str:
    """What is said of a model that the caller cannot use, whether it exists or not: nobody learns others' names."""
    return f"the model {name!r} does not exist; GET /v1/models lists those that do"


def is_adapter_name(name: str) -> bool:
    """True if an adapter may be called so: letters of any script, digits, spaces and signs, but nothing that cannot be
    printed, no leading or trailing space, no leading dot or slash and no ``..`` between slashes.
    """
    return (
        0 < len(name) <= LONGEST_NAME
        and name.isprintable()
        and name == name.strip()
        and name[0] not in "./"
        and not name.endswith("/")
        and not any(part in ("", ".", "..") for part in name.split("/"))
        and "\\" not in name
    )


__all__ = ["LONGEST_NAME", "is_adapter_name", "no_such_model"]
