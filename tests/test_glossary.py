"""The glossary holds: public names and docstrings use its words, and none of those that it lists as not used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "evenflow"
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Rule:
    """One word, or several with spaces between them, and what to say instead."""

    word: str
    instead: str
    folders: tuple[str, ...]
    phrases: tuple[str, ...]

    def is_broken_by(self, text: str) -> bool:
        for phrase in self.phrases:
            text = re.sub(re.escape(phrase), " ", text, flags=re.IGNORECASE)
        return re.search(rf"(?<![\w']){re.escape(self.word)}(s|es)?(?![\w'])", text, re.IGNORECASE) is not None


def rules(page: str) -> list[Rule]:
    """The table of the section "Words not used"."""
    section = page.split("## Words not used", 1)[1]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    found = []
    for words, instead, exceptions in rows[2:]:
        allowed = [re.sub(r"\(.*?\)", "", entry).strip(" `") for entry in exceptions.split(",") if entry.strip()]
        folders = tuple(entry for entry in allowed if "/" in entry)
        phrases = tuple(entry.replace("_", " ") for entry in allowed if "/" not in entry)
        found += [Rule(word.strip(), instead.strip(), folders, phrases) for word in words.split(",")]
    return found


def as_words(name: str) -> str:
    """``AllRanksCatalog`` and ``max_lora_rank`` as words with spaces between them."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", " ", name).strip().lower()


def public_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring, of those below attributes too, and of every public name, split into words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.lineno, as_words(node.name)
            if not isinstance(node, ast.ClassDef):
                for argument in (*node.args.args, *node.args.kwonlyargs):
                    yield argument.lineno, as_words(argument.arg)
        if isinstance(node, ast.Module | ast.ClassDef):
            for statement in node.body:
                targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
                for target in targets:
                    if isinstance(target, ast.Name) and not target.id.startswith("_"):
                        yield statement.lineno, as_words(target.id)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, " ".join(node.value.value.split())


RULES = rules(GLOSSARY)
SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_the_table_is_read():
    assert len(RULES) > 20
    by_word = {rule.word: rule for rule in RULES}
    assert by_word["tenant"].instead == "client"
    assert by_word["lane"].folders == ("serving/kernels/", "comm/kernels/")
    assert by_word["tenant"].is_broken_by("What tenants see.")
    assert by_word["manager"].is_broken_by(as_words("AdapterManager"))
    assert not by_word["manager"].is_broken_by("A context manager.")
    assert by_word["max rank"].is_broken_by(as_words("max_rank"))
    assert not by_word["max rank"].is_broken_by(as_words("max_lora_rank"))


def test_every_text_of_a_module_is_found():
    tree = ast.parse(
        '"""One."""\nTWO = 1\n"""Three."""\nclass FourFive:\n    six_seven: int\n    """Eight."""\ndef nine(ten): ...'
    )
    found = sorted(text for _, text in public_texts(tree))
    assert found == sorted(["One.", "two", "Three.", "four five", "six seven", "Eight.", "nine", "ten"])


@pytest.mark.parametrize("room", sorted({path.relative_to(PACKAGE).parts[0] for path in SOURCES}))
def test_no_public_name_or_docstring_uses_a_word_that_the_glossary_forbids(room):
    faults = []
    for path in SOURCES:
        inside = path.relative_to(PACKAGE).as_posix()
        if inside.split("/")[0] != room:
            continue
        held = [rule for rule in RULES if not inside.startswith(rule.folders)]
        texts = [(1, as_words(path.stem)), *public_texts(ast.parse(path.read_text(encoding="utf-8")))]
        faults += [
            f"{inside}:{line}: {rule.word!r}; say {rule.instead}"
            for line, text in texts
            for rule in held
            if rule.is_broken_by(text)
        ]
    assert not faults, "\n".join(faults)
