"""Every constrained answer parses and validates: random schemas, greedy and sampled, over three kinds of tokenizers.

Masks, rules for tokens and sampler are those of the engine, in one batch of many answers. In place of a model stand random
logits that would say anything. They lean to the end of an answer, as a model does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
import torch
from random_schemas import SchemaMaker
from tokenizers import decoders, models, pre_tokenizers, trainers

from evenflow.base.errors import ConstraintFailed, InvalidRequest
from evenflow.demo import assets
from evenflow.serving.core.plan import SampleSpec
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.core.structured import StructuredOutputs
from evenflow.serving.grammar.compiler import GrammarCompiler
from evenflow.serving.grammar.mask_ahead import ConstrainedAnswer, MaskAhead
from evenflow.serving.runner.sampler import Sampler
from evenflow.serving.text import Tokenizer

REAL = Path.home() / ".cache" / "evenflow" / "smollm2-135m-instruct"
VALIDATOR = jsonschema.Draft202012Validator
ROWS = 32
MOST_TOKENS = 600
MARKS = "@.-:_TZabc019"


@dataclass(slots=True)
class Answer:
    """One answer on its way."""

    schema: dict[str, Any]
    sampling: SamplingParams
    place: ConstrainedAnswer
    token_ids: list[int] = field(default_factory=list)


class Vocabulary:
    """A tokenizer, its grammars, and random logits over it."""

    def __init__(self, tokenizer: Tokenizer, eos: int, seed: int) -> None:
        self.tokenizer, self.eos = tokenizer, eos
        self.size = tokenizer.vocab_size + 3  # padding, as models have
        self.compiler = GrammarCompiler(tokenizer.json_text(), self.size, (eos,))
        self._noise = torch.Generator().manual_seed(seed)
        texts = [tokenizer.decode([token]) if token < tokenizer.vocab_size else "" for token in range(self.size)]
        self._ends_V = torch.tensor([_lean(text) for text in texts])
        self._ends_V[eos] = 8.0
        self._marks = torch.tensor([texts.index(mark) for mark in MARKS if mark in texts])

    def logits(self, num_tokens: list[int]) -> torch.Tensor:
        """Of so many answers, fp32, each with as many tokens as is said: the longer, the sooner at its end."""
        lean_L1 = torch.tensor([0.5 + count / 60 for count in num_tokens])[:, None]
        logits_LV = 3 * torch.randn(len(num_tokens), self.size, generator=self._noise) + lean_L1 * self._ends_V
        # Every other token may be a mark without which some texts have no end, such as the @ of an address.
        picks_L = torch.randint(2 * len(self._marks), (len(num_tokens),), generator=self._noise)
        for row, pick in enumerate(picks_L.tolist()):
            if pick < len(self._marks):
                logits_LV[row, self._marks[pick]] += 100
        return logits_LV


def _lean(text: str) -> float:
    """To what ends a text, an array or an object, and away from what makes them longer."""
    return 7.0 * text.startswith('"') + 4.0 * (text in ("}", "]")) - 3.0 * ("," in text) - 5.0 * text.strip().isdigit()


def constraints(vocabulary: Vocabulary, seed: int, count: int, refused: list[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """(schema, fresh matcher) of ``count`` random schemas; those that cannot be followed are counted."""
    maker = SchemaMaker(seed)
    for _ in range(count):
        schema = maker.schema()
        VALIDATOR.check_schema(schema)
        try:
            yield schema, vocabulary.compiler.compile(StructuredOutputs(json=schema))
        except (ConstraintFailed, InvalidRequest) as error:
            refused.append(f"{error}: {json.dumps(schema)[:300]}")


def answers(vocabulary: Vocabulary, temperature: float, seed: int, count: int) -> tuple[list[Answer], list[str]]:
    """Answers to ``count`` random schemas, and which could not be followed."""
    ahead, sampler, refused = MaskAhead(), Sampler((vocabulary.eos,)), []
    todo = constraints(vocabulary, seed, count, refused)
    running: list[Answer] = []
    ended: list[Answer] = []
    number = 0
    while True:
        for schema, matcher in islice(todo, ROWS - len(running)):
            sampling = SamplingParams(temperature=temperature, seed=number, max_tokens=None, top_p=1.0 - 0.1 * (number % 2))
            running.append(Answer(schema, sampling, ahead.begin(matcher)))
            number += 1
        if not running:
            ahead.close()
            return ended, refused
        specs = [SampleSpec(one.sampling, (), one.token_ids, 0, one.place) for one in running]
        tokens = sampler(vocabulary.logits([len(one.token_ids) for one in running]), specs)
        going = []
        for one, token in zip(running, tokens, strict=True):
            assert token.error is None, f"{token.error} behind {vocabulary.tokenizer.decode(one.token_ids)}: {one.schema}"
            if token.token_id == vocabulary.eos:
                ended.append(one)
                continue
            one.token_ids.append(token.token_id)
            said = vocabulary.tokenizer.decode(one.token_ids[-40:])
            assert len(one.token_ids) < MOST_TOKENS, f"... {said}: {json.dumps(one.schema)}"
            going.append(one)
        ahead.advance([(one.place, one.token_ids[-1]) for one in going])
        running = going


def check(vocabulary: Vocabulary, temperature: float, seed: int, count: int) -> None:
    ended, refused = answers(vocabulary, temperature, seed, count)
    faults = []
    for one in ended:
        text = vocabulary.tokenizer.decode(one.token_ids)
        try:
            value = json.loads(text)
            VALIDATOR(one.schema, format_checker=VALIDATOR.FORMAT_CHECKER).validate(value)
        except (ValueError, jsonschema.ValidationError) as error:
            faults.append(f"{str(error)[:300]}\n  {text}\n  {json.dumps(one.schema)}")
    assert not faults, f"{len(faults)} of {len(ended)}:\n" + "\n".join(faults[:10])
    assert len(refused) <= 0.05 * count, refused[:10]
    assert len(ended) + len(refused) == count
    texts = {tuple(one.token_ids) for one in ended}
    assert len(texts) > 0.8 * len(ended), "the answers differ"
    assert np.mean([len(one.token_ids) for one in ended]) > 5


def embedded(tmp_path: Path) -> Vocabulary:
    return Vocabulary(Tokenizer.from_folder(Path(assets.__file__).parent / "assets" / "base"), 0, 1)


def metaspace(tmp_path: Path) -> Vocabulary:
    """Llama's kind: ▁ for spaces, bytes for characters outside the vocabulary; trained on JSON, so that tokens cross marks."""
    maker = SchemaMaker(99)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
        limit_alphabet=80,
        show_progress=False,
    )
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.train_from_iterator([json.dumps(maker.schema(), ensure_ascii=False) for _ in range(300)], trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # bytes are ordinary tokens of the vocabulary
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return Vocabulary(Tokenizer.from_folder(tmp_path), 2, 2)


def smollm2(tmp_path: Path) -> Vocabulary:
    if not (REAL / "tokenizer.json").exists():
        pytest.skip(f"{REAL} does not exist; make demo-real writes it")
    return Vocabulary(Tokenizer.from_folder(REAL), 2, 3)


KINDS = {"byte-level": embedded, "sentencepiece": metaspace, "smollm2": smollm2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_a_slice_of_the_schemas(tmp_path, kind, temperature):
    check(KINDS[kind](tmp_path), temperature, seed=7, count=30)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_schemas(tmp_path, kind, temperature):
    check(KINDS[kind](tmp_path), temperature, seed=1, count=1000)
