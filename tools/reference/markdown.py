"""Small pieces of Markdown that every generated page is made of."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Sequence

GENERATED = "<!-- Written by `make reference` from the code. Change the code, not this page. -->"
"""First line of a generated page."""


def cell(text: object) -> str:
    """Text as one cell of a table: one line, no bar that would end the cell, nothing that looks like HTML outside of code."""
    line = " ".join(str(text).split()).replace("``", "`").replace("|", "\\|")
    spans = line.split("`")
    return "`".join(span if number % 2 else span.replace("<", "&lt;") for number, span in enumerate(spans))


def code(text: object) -> str:
    """Text as code within a line or a cell."""
    escaped = " ".join(str(text).split()).replace("|", "\\|")
    return f"`{escaped}`" if escaped else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are given as Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def page(title: str, intro: str, *parts: str) -> str:
    """A generated page: its mark, title, introduction and parts, with one empty line between them."""
    return "\n\n".join([GENERATED, f"# {title}", intro, *parts]) + "\n"


def prose(text: str) -> str:
    """One paragraph, wrapped as the pages that people write are."""
    return textwrap.fill(" ".join(text.split()), 98, break_long_words=False, break_on_hyphens=False)


def docstring(thing: object) -> str:
    """The docstring of a class, function or module without its indentation, or nothing."""
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "")


def first_paragraph(thing: object) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(docstring(thing).split("\n\n")[0].split())


def field_docstrings(class_: type) -> dict[str, str]:
    """Field of a class -> the string that stands below it in the source, of base classes too."""
    found: dict[str, str] = {}
    for base in reversed(class_.__mro__):
        if base.__module__.startswith("evenflow"):
            found |= _own_field_docstrings(base)
    return found


def _own_field_docstrings(class_: type) -> dict[str, str]:
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(class_)))
    definition = tree.body[0]
    assert isinstance(definition, ast.ClassDef)
    found, name = {}, None
    for statement in definition.body:
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if is_text and name is not None:
            text = statement.value.value  # type: ignore[attr-defined]
            found[name] = " ".join(str(text).split())
        is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        name = statement.target.id if is_field else None  # type: ignore[attr-defined]
    return found
