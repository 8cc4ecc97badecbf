"""Chat templates and tokens of adapters' own, read when an adapter is first asked for and kept with its digest."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path

from evenflow.base.errors import AdapterRejected
from evenflow.serving.server.interfaces import ChatTemplate
from evenflow.serving.text import ChatTemplate as TextTemplate
from evenflow.serving.text import Tokenizer
from evenflow.serving.text.own_text import OwnText, read_own_text

_MOST_KEPT = 256


class AdapterTexts:
    """Of a server whose operator trusts the folders. One event loop; reading is done by threads."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template if isinstance(template, TextTemplate) else None
        self._known: OrderedDict[str, tuple[str, OwnText | None]] = OrderedDict()
        """By name: digest, and what is of its own."""

    async def prepare(self, name: str, digest: str, folder: str, boundary: str) -> None:
        """Have ``of(name)`` right for these weights. Raises AdapterRejected if its files cannot be used."""
        known = self._known.get(name)
        if known is not None and known[0] == digest:
            self._known.move_to_end(name)
            return
        allowed = (Path(boundary),) if boundary else ()
        try:
            own = await asyncio.to_thread(read_own_text, Path(folder), self._tokenizer, self._template, allowed)
        except AdapterRejected as error:
            raise AdapterRejected(repr(name), error.reasons) from None
        self._known[name] = digest, own
        while len(self._known) > _MOST_KEPT:
            self._known.popitem(last=False)

    def of(self, name: str) -> OwnText | None:
        """What ``name`` has of its own, as it was prepared last."""
        known = self._known.get(name)
        return None if known is None else known[1]


__all__ = ["AdapterTexts"]
