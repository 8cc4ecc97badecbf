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

LOWEST = -9999.0
"""JSON has no minus infinity; this is what OpenAI and vLLM write for it."""


def chat_logprobs(entries: Sequence[Logprobs]) -> ChatLogprobs:
    """OpenAI's chat shape."""
    return ChatLogprobs(
        [
            TokenLogprob(
                entry.token,
                _finite(entry.logprob),
                _bytes(entry.token),
                [TopLogprob(text, _finite(logprob), _bytes(text)) for _, text, logprob in entry.top],
                entry.token_rank or None,
            )
            for entry in entries
        ]
    )


def completion_logprobs(entries: Sequence[Logprobs | None], first_token: str = "", offset: int = 0) -> CompletionLogprobs:
    """OpenAI's completions shape.

    ``offset``: characters before the first token; ``first_token``: its text, where its entry is None.
    """
    body = CompletionLogprobs([], [], [], [])
    for entry in entries:
        token = entry.token if entry is not None else first_token
        body.tokens.append(token)
        body.text_offset.append(offset)
        offset += len(token)
        if entry is None:
            body.token_logprobs.append(None)
            body.top_logprobs.append(None)
            continue
        body.token_logprobs.append(_finite(entry.logprob))
        top: dict[str, float] = {}
        for _, text, logprob in entry.top:
            top.setdefault(text, _finite(logprob))  # two tokens may have the same text: the likelier one counts
        top.setdefault(entry.token, _finite(entry.logprob))  # with logprobs 0, too, as vLLM does
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


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def _bytes(text: str) -> list[int]:
    return list(text.encode("utf-8", "replace"))
