"""A conversation whose last message stays open: its text gets a mark, and the rendered prompt ends where the mark begins."""

from __future__ import annotations

import re
from typing import Any

from evenflow.base.errors import InvalidRequest

_MARK = "THE_LAST_MESSAGE_STAYS_OPEN_HERE"


def mark_end(message: dict[str, Any]) -> None:
    """Mark the end of the text of ``message``, which is the caller's own. Raises InvalidRequest if it has none."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [dict(part) for part in content]
        last = next((part for part in reversed(parts) if part.get("type") == "text"), None)
        if last is not None:
            last["text"] += _MARK + " "
            message["content"] = parts
            return
    elif content:
        message["content"] = f"{content}{_MARK} "
        return
    raise InvalidRequest("continue_final_message is given, and the last message has no text", "continue_final_message")


def cut_at_mark(rendered: str) -> str:
    """Return the prompt up to the mark. Raises InvalidRequest if the template has not written the marked text.

    Behind the mark stands a blank. If the template has taken it away, it takes blanks from the ends of all texts, and
    the text before the mark loses those at its end too. A template that writes the text in several places has it marked in
    all of them: the last one stays open.
    """
    before, mark, after = rendered.rpartition(_MARK)
    if not mark:
        raise InvalidRequest(
            "the chat template does not write the last message, so that it cannot be continued", "continue_final_message"
        )
    before = re.sub(rf"\s*{_MARK}(?! )", "", before).replace(f"{_MARK} ", "")
    return before if after.startswith(" ") else before.rstrip()


__all__ = ["cut_at_mark", "mark_end"]
