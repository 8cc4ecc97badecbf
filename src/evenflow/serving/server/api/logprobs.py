"""Log-probabilities in the three shapes that clients expect: OpenAI's chat, OpenAI's completions, vLLM's prompt."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.serving.client.messages import Logprobs
from evenflow.serving.server.api.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from evenflow.serving.text.detokenizer import Utf8Stream

LOWEST = -9999.0
"""JSON has no minus infinity; this is what OpenAI and vLLM write for it."""


def chat_logprobs(entries: Sequence[Logprobs], as_ids: bool = False) -> ChatLogprobs:
    """OpenAI's chat shape. ``as_ids``: tokens are named by their ids; their bytes are told all the same."""
    return ChatLogprobs(
        [
            TokenLogprob(
                _name(entry.token_id, entry.token, as_ids),
                _finite(entry.logprob),
                list(_bytes(entry, entry.token_id, entry.token)),
                [
                    TopLogprob(_name(token_id, text, as_ids), _finite(logprob), list(_bytes(entry, token_id, text)))
                    for token_id, text, logprob in entry.top
                ],
                entry.token_rank or None,
            )
            for entry in entries
        ]
    )


class TextOffsets:
    """Where in a text its tokens begin, in characters, token by token.

    Tokens that are parts of one character all begin where the character does.
    """

    def __init__(self) -> None:
        self._stream = Utf8Stream(replaces_each_byte=False)
        self._num_characters = 0

    def add(self, data: bytes) -> int:
        """Place of the next token, which is ``data``."""
        place = self._num_characters
        self._num_characters += len(self._stream.feed(data))
        return place


def completion_logprobs(
    entries: Sequence[Logprobs | None],
    first_token: tuple[int, str] | None = None,
    offsets: TextOffsets | None = None,
    *,
    as_ids: bool = False,
) -> CompletionLogprobs:
    """OpenAI's completions shape.

    ``offsets``: of the text that these entries continue; ``first_token``: id and text of the first one, where its entry is
    None. ``as_ids``: tokens are named by their ids.
    """
    offsets = TextOffsets() if offsets is None else offsets
    body = CompletionLogprobs([], [], [], [])
    for entry in entries:
        token_id, token = (entry.token_id, entry.token) if entry is not None else first_token or (0, "")
        body.tokens.append(_name(token_id, token, as_ids))
        data = token.encode("utf-8", "replace") if entry is None else _bytes(entry, entry.token_id, token)
        body.text_offset.append(offsets.add(data))
        if entry is None:
            body.token_logprobs.append(None)
            body.top_logprobs.append(None)
            continue
        body.token_logprobs.append(_finite(entry.logprob))
        top: dict[str, float] = {}
        for token_id, text, logprob in entry.top:
            # Two tokens may have the same text: the likelier one counts.
            top.setdefault(_name(token_id, text, as_ids), _finite(logprob))
        top.setdefault(_name(entry.token_id, entry.token, as_ids), _finite(entry.logprob))  # with logprobs 0, too, as vLLM does
        body.top_logprobs.append(top)
    return body


def prompt_logprobs(entries: Sequence[Logprobs | None]) -> PromptLogprobs:
    """vLLM's prompt shape: by token id, as a text, the likeliest tokens and the one that stands there."""
    body: PromptLogprobs = []
    for entry in entries:
        if entry is None:
            body.append(None)
            continue
        place = {
            str(token_id): PromptLogprob(_finite(logprob), text, rank)
            for rank, (token_id, text, logprob) in enumerate(entry.top, 1)
        }
        place.setdefault(str(entry.token_id), PromptLogprob(_finite(entry.logprob), entry.token, entry.token_rank or None))
        body.append(place)
    return body


def _name(token_id: int, text: str, as_ids: bool) -> str:
    return f"token_id:{token_id}" if as_ids else text


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def _bytes(entry: Logprobs, token_id: int, text: str) -> bytes:
    return entry.bytes_by_id.get(token_id) or text.encode("utf-8", "replace")
