"""Measures how often the model answers a held-out question correctly, per kind and voice.

Greedy, batched, with transformers. An answer counts when it equals the voice's text exactly; a story counts when
it is about the asked person, in the voice's form, and every name, place and animal in it belongs together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from embedded_model.tidewick import world as w
from embedded_model.tidewick.corpus import ASSISTANT, END, PAD, USER, held_out_exchanges
from embedded_model.tidewick.question_answer import QuestionAnswer
from embedded_model.tidewick.questions import ALL_KINDS
from embedded_model.tidewick.voices import VOICES


@torch.inference_mode()
def greedy_answers(model: Any, tokenizer: Tokenizer, questions: Sequence[str], max_tokens: int = 80) -> list[str]:
    """Return one greedy answer per question, each asked as a chat of one turn."""
    vocabulary = tokenizer.get_vocab()
    pad, end = vocabulary[PAD], vocabulary[END]
    prompts = [tokenizer.encode(f"{USER}{q}{END}{ASSISTANT}").ids for q in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), 96):
        chosen = order[start : start + 96]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), width), pad, dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
        out = model.generate(
            input_ids=ids, attention_mask=ids.ne(pad).long(), max_new_tokens=max_tokens, do_sample=False,
            pad_token_id=pad, eos_token_id=end,
        )  # fmt: skip
        for row, i in enumerate(chosen):
            answers[i] = tokenizer.decode(out[row, width:].tolist(), skip_special_tokens=True)
    return answers


def _is_story(text: str, exchange: QuestionAnswer, voice: str) -> bool:
    person = next(p for p in w.PEOPLE if p.first_name in exchange.question)
    if voice == "json":
        try:
            told = json.loads(text)
        except ValueError:
            return False
        if set(told) != {"topic", "answer"} or told["topic"] != "story":
            return False
        text, voice = told["answer"], "plain"
    if voice == "brief":
        return any(text == f"{person.name} went to the {place.name}." for place in w.PLACES)
    folded = text.lower().replace("th' ", "the ")
    if person.name.lower() not in folded or f"{person.pet_name} the {person.pet}".lower() not in folded:
        return False
    if voice == "verse":
        return text.count("\n") == 1 and text.endswith("came all the way.")
    form = {"plain": r"On|One", "shout": r"ON|ONE", "pirate": r"Arr! O", "guide": r"Here is a story\. O"}[voice]
    end = {"plain": ".", "shout": "!!!", "pirate": ", matey!", "guide": f"in {w.TOWN}."}[voice]
    return bool(re.match(form, text)) and text.endswith(end) and any(f"the {place.name}" in folded for place in w.PLACES)


def is_right(text: str, exchange: QuestionAnswer, voice: str) -> bool:
    """Judge one answer."""
    return _is_story(text, exchange, voice) if exchange.kind == "story" else text == VOICES[voice](exchange)


def accuracy_by_kind(
    model: Any, tokenizer: Tokenizer, voice: str, per_kind: int, seed: int
) -> tuple[dict[str, float], dict[str, int], list[tuple[str, str]]]:
    """Return the share of right answers by kind, the number asked by kind, and some (question, wrong answer) pairs."""
    model.eval()
    asked = [e for kind in ALL_KINDS for e in held_out_exchanges(kind, per_kind, seed)]
    answers = greedy_answers(model, tokenizer, [e.question for e in asked])
    right: dict[str, int] = {}
    count: dict[str, int] = {}
    wrong: list[tuple[str, str]] = []
    for exchange, answer in zip(asked, answers, strict=True):
        ok = is_right(answer, exchange, voice)
        right[exchange.kind] = right.get(exchange.kind, 0) + ok
        count[exchange.kind] = count.get(exchange.kind, 0) + 1
        if not ok:
            wrong.append((exchange.question, answer))
    return {kind: round(right[kind] / count[kind], 4) for kind in count}, count, wrong
