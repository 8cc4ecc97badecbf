"""Which engine should hold answers to their grammars: llguidance or xgrammar. Coverage, compile time, time of a mask.

    python benchmarks/recipes/grammar_engines.py --suite DIR --json benchmarks/results/grammar_engines--M.json [--model DIR]

``--suite`` is a folder of JSON-Schema-Test-Suite's cases, ``tests/draft2020-12``; the source distribution of the package
``jsonschema`` has it under ``json/``. xgrammar is no dependency of the project: ``pip install xgrammar`` into a copy of its
environment.

Coverage: each schema of the suite is compiled as the engine's users would (llguidance behind the server's own reading of
schemas; xgrammar in its strict mode, which is its default, and without), and each of its instances is given as text. An
engine that takes an instance which the suite calls invalid would let an answer through that does not validate: that is a
fault. One that refuses a valid instance narrows what may be said, which is harmless as long as something is left; one that
refuses a schema says so.

Speed: the suite's schemas and those of ``tests/serving/grammar/random_schemas.py``, which real clients' resemble more. A
mask is computed before each token of a text that the schema allows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np

from evenflow.base.errors import EvenFlowError
from evenflow.bench.harness import summary, write_result
from evenflow.demo import assets
from evenflow.serving.core.structured import StructuredOutputs
from evenflow.serving.grammar.compiler import GrammarCompiler
from evenflow.serving.text import Tokenizer

EMBEDDED = Path(assets.__file__).parent / "assets" / "base"
SCHEMAS = Path(__file__).parents[2] / "tests" / "serving" / "grammar"
MOST_TOKENS = 200


class Matcher(Protocol):
    """A place in a grammar."""

    def mask(self) -> np.ndarray:
        """Bits of the tokens that may come, uint32."""
        ...

    def accept(self, token_id: int) -> bool:
        """Go on; False if the token may not come."""
        ...

    def may_end(self) -> bool:
        """True if the text so far is whole."""
        ...


class Engine(Protocol):
    """Compiles schemas for one tokenizer."""

    name: str

    def compile(self, schema: Any) -> Matcher:
        """Raises an exception for a schema that cannot be followed."""
        ...


class LlGuidance:
    """The server's own path."""

    name = "llguidance"

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        self._text, self._size, self._eos = tokenizer.json_text(), tokenizer.vocab_size, eos
        self._compiler = GrammarCompiler(self._text, self._size, (eos,))

    def compile(self, schema: Any) -> Matcher:
        """Compile ``schema``."""
        matcher = self._compiler.compile(StructuredOutputs(json=schema))

        class Place:
            def mask(self) -> np.ndarray:
                return np.frombuffer(matcher.compute_bitmask(), dtype=np.uint32)

            def accept(self, token_id: int) -> bool:
                return bool(matcher.consume_token(token_id))

            def may_end(self) -> bool:
                return bool(matcher.is_accepting())

        return Place()


class XGrammar:
    """Any blanks, as by default. Strict: what the schema does not name is forbidden."""

    name = "xgrammar"
    is_strict = False

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        import xgrammar

        self._xgrammar = xgrammar
        said = (tokenizer.decode([token]) for token in range(tokenizer.vocab_size))
        tokens = [tokenizer.token_bytes(token) if text else b"" for token, text in enumerate(said)]
        info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, vocab_size=len(tokens), stop_token_ids=[eos])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._size, self._eos = len(tokens), eos

    def compile(self, schema: Any) -> Matcher:
        """Compile ``schema``."""
        matcher = self._xgrammar.GrammarMatcher(
            self._compiler.compile_json_schema(json.dumps(schema), strict_mode=self.is_strict)
        )
        bits, eos = self._xgrammar.allocate_token_bitmask(1, self._size), self._eos

        class Place:
            def mask(self) -> np.ndarray:
                if not matcher.fill_next_token_bitmask(bits):
                    bits.fill_(-1)
                return bits.numpy().view(np.uint32)[0]

            def accept(self, token_id: int) -> bool:
                return bool(matcher.accept_token(token_id))

            def may_end(self) -> bool:
                return bool(self.mask()[eos // 32] >> np.uint32(eos % 32) & np.uint32(1))

        return Place()


class StrictXGrammar(XGrammar):
    """Its default, and vLLM's."""

    name = "xgrammar, strict"
    is_strict = True


@dataclass(frozen=True, slots=True)
class Case:
    """A schema of the suite and its instances, as text, with whether they are valid."""

    keyword: str
    schema: Any
    instances: list[tuple[str, bool]]


def cases(suite: Path) -> Iterator[Case]:
    for file in sorted(suite.glob("*.json")):
        for group in json.loads(file.read_text()):
            tests = [(json.dumps(test["data"]), bool(test["valid"])) for test in group["tests"]]
            yield Case(file.stem, group["schema"], tests)


def takes(matcher: Matcher, token_ids: list[int]) -> bool:
    return all(matcher.accept(token) for token in token_ids) and matcher.may_end()


def coverage(engine: Engine, suite: list[Case], encode: Callable[[str], list[int]]) -> dict[str, Any]:
    """What becomes of the suite's schemas and instances."""
    count: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for case in suite:
        try:
            engine.compile(case.schema)
        except Exception:  # whatever an engine says no with
            count["schemas refused"] += 1
            refused[case.keyword] += 1
            continue
        count["schemas compiled"] += 1
        wrong = [text for text, is_valid in case.instances if not is_valid and takes(engine.compile(case.schema), encode(text))]
        narrow = [
            text for text, is_valid in case.instances if is_valid and not takes(engine.compile(case.schema), encode(text))
        ]
        count["instances"] += len(case.instances)
        count["invalid instances taken"] += len(wrong)
        count["valid instances not taken"] += len(narrow)
        count["schemas that take an invalid instance"] += bool(wrong)
        faults[case.keyword] += len(wrong)
    return {**count, "invalid taken by keyword": dict(+faults), "schemas refused by keyword": dict(refused)}


def speed(engine: Engine, schemas: list[Any], eos: int) -> dict[str, Any]:
    """Seconds of a first compilation, and of a mask; random walks, at most ``MOST_TOKENS`` long."""
    compile_s: list[float] = []
    mask_s: list[float] = []
    refused = 0
    for number, schema in enumerate(schemas):
        rng = Random(number)
        started_s = time.perf_counter()
        try:
            matcher = engine.compile(schema)
        except Exception:  # whatever an engine says no with
            refused += 1
            continue
        compile_s.append(time.perf_counter() - started_s)
        for _ in range(MOST_TOKENS):
            started_s = time.perf_counter()
            words = matcher.mask()
            mask_s.append(time.perf_counter() - started_s)
            may_come = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
            if not len(may_come) or (eos in may_come and rng.random() < 0.5):
                break
            token = int(rng.choice(may_come))
            if token == eos or not matcher.accept(token):
                break
    return {
        "schemas": len(compile_s),
        "refused": refused,
        "compile_s": _distribution(compile_s),
        "masks": len(mask_s),
        "mask_s": _distribution(mask_s),
    }


def _distribution(samples: list[float]) -> dict[str, float]:
    return {
        **summary(samples),
        "mean": float(np.mean(samples)),
        "p99": float(np.quantile(samples, 0.99)),
        "max": max(samples),
    }


def large_schema(number: int) -> dict[str, Any]:
    """About 2 kB, different for every ``number``."""
    properties: dict[str, Any] = {
        f"field_{number}_{i}": {"type": "string", "maxLength": 10 + i, "description": "x" * 20} for i in range(24)
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="folders of further tokenizers")
    parser.add_argument("--schemas", type=int, default=200)
    args = parser.parse_args()
    sys.path.insert(0, str(SCHEMAS))
    from random_schemas import SchemaMaker

    maker = SchemaMaker(1)
    random = [maker.schema() for _ in range(args.schemas)]
    large = [large_schema(number) for number in range(20)]
    suite = list(cases(args.suite))
    if not suite:
        raise SystemExit(f"{args.suite} holds no cases; give the folder tests/draft2020-12 of JSON-Schema-Test-Suite")
    results: dict[str, Any] = {}
    for folder in (EMBEDDED, *args.model):
        tokenizer = Tokenizer.from_folder(folder)
        eos = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        eos = eos[0] if isinstance(eos, list) else eos
        for make in (LlGuidance, StrictXGrammar, XGrammar):
            try:
                engine: Engine = make(tokenizer, eos)
            except EvenFlowError as error:
                raise SystemExit(str(error)) from None
            place = results.setdefault("embedded" if folder == EMBEDDED else folder.name, {})
            encode = lambda text, tokenizer=tokenizer: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
            place[engine.name] = {
                "version": version(engine.name.partition(",")[0]),
                "vocabulary": tokenizer.vocab_size,
                "suite": coverage(engine, suite, encode),
                "random schemas": speed(engine, random, eos),
                "schemas of 2 kB": speed(engine, large, eos),
            }
            print(folder.name, engine.name, json.dumps(place[engine.name])[:2000], file=sys.stderr, flush=True)
    write_result(args.json, "grammar_engines", {"suite schemas": len(suite), "random schemas": len(random)}, results)


if __name__ == "__main__":
    main()
