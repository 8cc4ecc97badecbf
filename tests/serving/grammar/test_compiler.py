"""Constraints of every kind compiled for the embedded model's tokenizer: what they allow, and what they refuse."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from random import Random

import jsonschema
import pytest

from evenflow.base.errors import ConstraintFailed, InvalidRequest
from evenflow.demo import assets
from evenflow.serving.core.structured import MAX_TEXT, StructuredOutputs
from evenflow.serving.grammar.compiler import GrammarCompiler
from evenflow.serving.grammar.mask_ahead import MaskAhead, mask_of
from evenflow.serving.text import Tokenizer

EOS = 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(Path(assets.__file__).parent / "assets" / "base")


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.json_text(), 1024, (EOS,))


def allowed(matcher) -> list[int]:
    words = mask_of(matcher)
    return [i for i in range(len(words) * 32) if words[i // 32] >> (i % 32) & 1]


def draw(compiler: GrammarCompiler, tokenizer: Tokenizer, constraint: StructuredOutputs, rng: Random, most: int = 400) -> str:
    """A random walk through what is allowed, to the end."""
    matcher, tokens = compiler.compile(constraint), []
    while len(tokens) < most:
        choices = allowed(matcher)
        assert choices, "a walk ended in the middle"
        token = EOS if EOS in choices and rng.random() < 0.5 else rng.choice(choices)
        if token == EOS:
            return tokenizer.decode(tokens)
        assert matcher.consume_token(token)
        tokens.append(token)
    return ""


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": r"\d{4}"}, r"[0-9]{4}"),
        ({"regex": r"[\d_]\w"}, r"[0-9_][0-9A-Za-z_]"),
        ({"regex": r"(yes|no), [a-z]{1,8}\."}, r"(yes|no), [a-z]{1,8}\."),
        ({"choice": ["north", "south", "nowhere"]}, "north|south|nowhere"),
        ({"grammar": 'root ::= "a" ("," "a"){0,3}'}, "a(,a){0,3}"),
        ({"grammar": 'start: "x" NUM\nNUM: /[0-9]{2}/'}, r"x\d\d"),
    ],
)
def test_random_walks_match(compiler, tokenizer, constraint, pattern):
    rng = Random(1)
    texts = {draw(compiler, tokenizer, StructuredOutputs(**constraint), rng) for _ in range(30)}
    assert len(texts) > 1
    for text in texts:
        assert re.fullmatch(pattern, text), text


def random_schema(rng: Random, depth: int = 0) -> dict:
    kind = rng.choice(
        ["integer", "boolean", "enum", "string"] if depth >= 2 else ["object", "array", "integer", "enum", "string"]
    )
    if kind == "object":
        names = rng.sample(["a", "price", "shop", "open", "who", "é"], rng.randint(1, 3))
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth + 1) for name in names},
            "required": rng.sample(names, rng.randint(0, len(names))),
            "additionalProperties": False,
        }
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": rng.randint(0, 1), "maxItems": 2}
    if kind == "enum":
        return {"enum": rng.sample(["red", "blue", 3, None, True], 2)}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(1, 12)}
    if kind == "integer":
        return {"type": "integer", "minimum": 0, "maximum": rng.choice([9, 255, 4000])}
    return {"type": kind}


def test_answers_validate_against_random_schemas(compiler, tokenizer):
    rng, num_ended = Random(7), 0
    for _ in range(120):
        schema = random_schema(rng)
        text = draw(compiler, tokenizer, StructuredOutputs(json=schema), rng)
        if text:
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
            num_ended += 1
    assert num_ended > 100


def test_a_structural_tag_lets_text_through_and_binds_what_follows_its_trigger(compiler, tokenizer):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    structure = {"begin": "<call>", "schema": schema, "end": "</call>"}
    tag = StructuredOutputs(structural_tag={"structures": [structure], "triggers": ["<call>"]})

    def takes(text: str) -> int:
        matcher, tokens = compiler.compile(tag), tokenizer.encode(text, add_special_tokens=False)
        return len(tokens) - matcher.try_consume_tokens(tokens)

    assert takes("It costs six shells.") == 0
    assert takes('Let me see. <call>{"n": 12}</call> It is so.') == 0
    assert takes('<call>{"n": "x"}</call>') > 0
    assert takes("<call> nonsense") > 0


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": "a{99999999999}"}, "regex"),
        ({"regex": r"[a&&b]"}, "no text can follow"),
        ({"json": {"not": {"type": "string"}}}, "not"),
        ({"json": {"$ref": "https://example.org/schema"}}, "cannot be followed"),
        ({"json": {"type": "object", "hue": 1}}, "hue"),
        ({"grammar": "start: " + "(" * 20000}, ""),
        ({"grammar": "root ::= nobody"}, ""),
        ({"choice": "[]"}, "choice"),
        ({"choice": "[1]"}, "choice"),
        ({"structural_tag": "{}"}, "triggers"),
        ({"structural_tag": {"structures": [{"begin": "<a>", "end": ""}], "triggers": ["<b>"]}}, "no trigger"),
        ({"structural_tag": {"format": {"type": "or"}}}, "triggered_tags"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(compiler, constraint, message):
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(StructuredOutputs(**constraint))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("fields", [{}, {"regex": "a", "json_object": True}, {"regex": "a" * (MAX_TEXT + 1)}])
def test_exactly_one_constraint_of_bounded_size(fields):
    with pytest.raises(InvalidRequest):
        StructuredOutputs(**fields)


def test_a_hostile_grammar_ends_within_its_bound(compiler):
    """What is dear to compile or to follow is given up by work done: no walk through it takes seconds a token."""
    hostile = [
        StructuredOutputs(regex=r"(.{0,1000}x){0,1000}"),
        StructuredOutputs(regex=r"((a{0,100}){0,100}){0,100}b"),
        StructuredOutputs(json={"enum": [f"{i}-" * 3 for i in range(3500)]}),
    ]
    for constraint in hostile:
        started_s = time.process_time()
        try:
            matcher = compiler.compile(constraint)
            for _ in range(5):
                choices = allowed(matcher)
                if not choices or matcher.is_error() or not matcher.consume_token(choices[-1]):
                    break
        except ConstraintFailed:
            pass
        assert time.process_time() - started_s < 10.0


def test_equal_constraints_are_compiled_once(tokenizer):
    compiler = GrammarCompiler(tokenizer.json_text(), 1024, (EOS,))
    first = StructuredOutputs(json={"type": "integer"})
    assert compiler.cached(first) is None
    one = compiler.compile(first)
    two = compiler.cached(StructuredOutputs(json='{"type":"integer"}'))
    assert two is not None
    assert one.consume_token(tokenizer.encode("7", add_special_tokens=False)[0])
    assert allowed(two) == allowed(compiler.compile(first)), "a copy does not move with another"


def test_the_cache_is_bounded(tokenizer):
    compiler = GrammarCompiler(tokenizer.json_text(), 1024, (EOS,))
    for i in range(300):
        compiler.compile(StructuredOutputs(choice=[f"c{i}"]))
    assert compiler.cached(StructuredOutputs(choice=["c0"])) is None
    assert compiler.cached(StructuredOutputs(choice=["c299"])) is not None


def test_masks_are_computed_ahead_on_another_thread(compiler, tokenizer):
    ahead = MaskAhead()
    answers = [ahead.begin(compiler.compile(StructuredOutputs(regex=f"{digit}{{3}}"))) for digit in "123"]
    tokens = [tokenizer.encode(digit, add_special_tokens=False)[0] for digit in "123"]
    for _ in range(3):
        assert [answer.words()[token // 32] >> (token % 32) & 1 for answer, token in zip(answers, tokens)] == [1, 1, 1]
        ahead.advance(list(zip(answers, tokens)))
    assert [answer.words()[0] & 1 for answer in answers] == [1, 1, 1], "only the end may follow"
    assert sum(word.bit_count() for word in answers[0].words()) == 1
    ahead.close()


def test_a_tokenizer_that_cannot_be_read_is_said():
    with pytest.raises(ConstraintFailed, match="tokenizer"):
        GrammarCompiler('{"model": {}}', 10, (0,))
    with pytest.raises(ConstraintFailed, match="end-of-sequence"):
        GrammarCompiler("{}", 10, ())


@pytest.mark.parametrize("kind", ["json", "json_object"])
def test_an_empty_pattern_leaves_no_room_between_the_parts(compiler, tokenizer, kind):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": [[1, 2]]}}, "required": ["a", "b"]}
    constraint = {"json": {**schema, "additionalProperties": False}} if kind == "json" else {"json_object": True}
    rng = Random(4)
    texts = [draw(compiler, tokenizer, StructuredOutputs(**constraint, whitespace_pattern=""), rng, 150) for _ in range(6)]
    for text in filter(None, texts):
        json.loads(text)
        assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text)), text
    assert any(texts)
