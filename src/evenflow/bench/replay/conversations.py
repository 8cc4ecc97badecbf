"""A trace from logs of real conversations, as S-LoRA and VTC made theirs of the Chatbot Arena's (not ours to ship).

Cleaning keeps single questions with one answer of text; of a conversation that was logged several times the latest counts.
Arrivals keep their order and their bursts and are stretched to the wanted rate; every model of the log becomes an adapter.
Reads two forms of record: a server's log line (``type``, ``tstamp``, ``model``, ``state: {conv_id, messages}``) and the
cleaned one (``conversation_id``, ``tstamp``, ``model``, ``conversation: [{role, content}]``).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evenflow.base.errors import ConfigError
from evenflow.bench.replay.trace import Trace

_NETWORK_ERROR = "network error due to high traffic"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One question and its answer."""

    conversation_id: str
    model: str
    logged_s: float
    prompt: str
    reply: str


def read_conversations(path: str | os.PathLike[str]) -> list[Conversation]:
    """Read and clean a JSON list or JSON lines. Raises ConfigError with the file (and line) for what is no JSON record."""
    name = os.fspath(path)
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {name}: {error}") from error
    return clean(_records(text, name))


def clean(records: Iterable[Mapping[str, Any]]) -> list[Conversation]:
    """Single-turn conversations of text, network errors left out, the latest of each id, in order of time."""
    latest: dict[str, Conversation] = {}
    for record in records:
        found = _conversation(record)
        if found is not None:
            kept = latest.get(found.conversation_id)
            if kept is None or found.logged_s >= kept.logged_s:
                latest[found.conversation_id] = found
    return sorted(latest.values(), key=lambda c: (c.logged_s, c.conversation_id))


def real_trace(
    conversations: list[Conversation],
    count_tokens: Callable[[str], int],
    *,
    rate: float,
    duration_s: float = 300.0,
    num_adapters: int | None = None,
    max_tokens: int = 512,
    seed: int = 42,
) -> Trace:
    """int(rate x duration) requests drawn from the log, at most; prompts and replies below ``max_tokens`` tokens each.

    Twice as many are drawn without replacement, those too long dropped, the first kept: as published, without its fault
    of passing over the neighbour of each one dropped. Models become adapters in turn (``num_adapters`` of them; None: one
    each). The output length is the logged reply's. Raises ConfigError if the log has too few that fit.
    """
    if not (0 < rate < math.inf and 0 < duration_s < math.inf) or (num_adapters is not None and num_adapters < 1):
        raise ConfigError(f"rate {rate}, duration_s {duration_s}, num_adapters {num_adapters}; allowed: above 0")
    wanted = int(rate * duration_s)
    rng = np.random.RandomState(seed)
    num_drawn = min(2 * wanted, len(conversations))
    drawn: list[int] = rng.choice(len(conversations), num_drawn, replace=False).tolist() if conversations else []
    kept: list[tuple[Conversation, int, int]] = []
    for i in drawn:
        conversation = conversations[i]
        lengths = count_tokens(conversation.prompt), count_tokens(conversation.reply)
        if len(kept) < wanted and all(1 <= length < max_tokens for length in lengths):
            kept.append((conversation, *lengths))
    if len(kept) < max(wanted, 1):
        raise ConfigError(
            f"{rate:g} requests/s for {duration_s:g} s need {wanted} conversations of fewer than {max_tokens} tokens each way; "
            f"{len(kept)} were found among {len(drawn)} drawn of {len(conversations)}"
        )
    kept.sort(key=lambda entry: entry[0].logged_s)
    logged = np.array([conversation.logged_s for conversation, _, _ in kept])
    span = logged[-1] - logged[0]
    arrival_s = (logged - logged[0]) * (duration_s / span) if span > 0 else np.zeros(len(kept))
    models = list(dict.fromkeys(conversation.model for conversation, _, _ in kept))
    count = len(models) if num_adapters is None else min(num_adapters, len(models))
    names = tuple(models) if count == len(models) else tuple(f"adapter-{i}" for i in range(count))
    adapter_of = {model: i % count for i, model in enumerate(models)}
    index = np.array([adapter_of[conversation.model] for conversation, _, _ in kept], np.int64)
    return Trace(
        name="real",
        clients=names,
        arrival_s=arrival_s,
        client_index=index,
        input_len=np.array([length for _, length, _ in kept], np.int64),
        output_len=np.array([length for _, _, length in kept], np.int64),
        adapters=names,
        adapter_index=index,
        horizon_s=duration_s,
        description=f"{len(kept)} logged conversations with {len(models)} models in {duration_s:g} s",
    )


def _records(text: str, name: str) -> Iterator[Mapping[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name}: {error}") from None
    else:
        records = text.splitlines()
    for number, record in enumerate(records, start=1):
        if isinstance(record, str) and not record.strip():
            continue
        try:
            record = json.loads(record) if isinstance(record, str) else record
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name} line {number}: {error}") from None
        if not isinstance(record, dict):
            raise ConfigError(f"{name}: record {number} is {type(record).__name__}, not an object")
        yield record


def _conversation(record: Mapping[str, Any]) -> Conversation | None:
    """The record as one question and one answer, or None if it is something else."""
    if record.get("type", "chat") != "chat":
        return None
    state = record.get("state")
    if isinstance(state, dict):
        offset = state.get("offset", 0)
        messages = state.get("messages")
        texts = [m[1] for m in messages[offset:]] if isinstance(messages, list) and isinstance(offset, int) else []
        conversation_id = state.get("conv_id")
    else:
        turns = record.get("conversation")
        texts = [turn.get("content") for turn in turns] if isinstance(turns, list) else []
        conversation_id = record.get("conversation_id")
    model, logged_s = record.get("model"), record.get("tstamp")
    if len(texts) != 2 or not all(isinstance(text, str) and text for text in texts):
        return None
    if not isinstance(conversation_id, str) or not isinstance(model, str) or not model:
        return None
    if isinstance(logged_s, bool) or not isinstance(logged_s, int | float) or not math.isfinite(logged_s):
        return None
    if texts[1].lower().startswith(_NETWORK_ERROR):
        return None
    return Conversation(conversation_id, model, float(logged_s), texts[0], texts[1])
