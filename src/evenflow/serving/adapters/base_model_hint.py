"""Which base model an adapter says it was trained for, and whether that is the one that is served.

A hint, never a reason to refuse: people rename folders and merge models. That shapes fit is checked elsewhere, strictly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_CACHE = re.compile(r"models--.*?--(?P<name>[^/]+)")


def is_same_model(stated: str, served: Iterable[str]) -> bool:
    """True if ``stated``, a name or a path, means one of the names and paths in ``served``.

    Compared by the last part and without case, so that org/Model, /models/model and a folder of the Hugging Face cache agree.
    """
    return _short(stated) in {_short(name) for name in served}


def _short(name: str) -> str:
    cached = _CACHE.search(name)
    return (cached["name"] if cached else name.rstrip("/").rsplit("/", 1)[-1]).lower()
