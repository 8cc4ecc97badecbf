"""The reference of the Python packages: every public name with its signature and what it promises."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

from reference.markdown import cell, code, docstring, field_docstrings, page, table

PACKAGES = ("evenflow", "evenflow.fairness", "evenflow.comm", "evenflow.mcbench")
"""Packages that may be imported by others; their ``__all__`` is what is public."""

INTRO = """\
The names that other programs may rely on: `__all__` of four packages. Everything else may move
between versions. `evenflow` and `evenflow.fairness` load no torch."""


def python_page() -> str:
    """The page, one section for each package and one below it for each name."""
    return page("Python API", INTRO, *(_package(name) for name in PACKAGES), _errors())


def public_names(package: str) -> list[str]:
    """The public names of a package, classes and functions before values."""
    module = importlib.import_module(package)
    names = [name for name in module.__all__ if not name.startswith("__")]
    return sorted(names, key=lambda name: (not callable(getattr(module, name)), name.lower()))


def _package(package: str) -> str:
    module = importlib.import_module(package)
    parts = [f"## {code(package)}", _text(docstring(module))]
    parts += [_name(package, name, getattr(module, name)) for name in public_names(package)]
    return "\n\n".join(part for part in parts if part)


def _name(package: str, name: str, thing: Any) -> str:
    parts = [f"### {code(name)}"]
    if not callable(thing):
        return "\n\n".join([*parts, f"A value of type `{type(thing).__name__}`."])
    parts.append(f"```python\n{_signature(name, thing)}\n```")
    parts.append(_text(docstring(thing)))
    if inspect.isclass(thing):
        parts += [_fields(thing), _methods(thing)]
    return "\n\n".join(part for part in parts if part)


def _signature(name: str, thing: Any) -> str:
    try:
        parameters = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    plain = [
        p.replace(annotation=_Plain(p.annotation)) if p.annotation is not p.empty else p for p in parameters.parameters.values()
    ]
    ends = f" -> {_Plain(parameters.return_annotation)}" if parameters.return_annotation is not parameters.empty else ""
    text = f"{name}({', '.join(map(str, plain))}){ends}"
    return text if len(text) <= 92 else "\n".join([f"{name}(", *(f"    {parameter}," for parameter in plain), f"){ends}"])


class _Plain(str):
    """An annotation that is shown as it is written, without quotes."""

    def __new__(cls, annotation: Any) -> _Plain:
        return super().__new__(cls, annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))

    def __repr__(self) -> str:
        return str(self)


def _fields(class_: type) -> str:
    if not dataclasses.is_dataclass(class_):
        return ""
    texts = field_docstrings(class_)
    rows = [[code(field.name), code(field.type), cell(texts.get(field.name, ""))] for field in dataclasses.fields(class_)]
    return table(["field", "type", "meaning"], rows) if rows else ""


def _methods(class_: type) -> str:
    rows = []
    for name, thing in inspect.getmembers(class_):
        module = getattr(thing, "__module__", None) or ""
        is_own = module.startswith("evenflow") if callable(thing) else isinstance(thing, property)
        if not name.startswith("_") and is_own and docstring(thing):
            rows.append([code(name), cell(docstring(thing).split("\n\n")[0])])
    return table(["method", "what it does"], rows) if rows else ""


def _errors() -> str:
    return "## Errors\n\n" + _text(docstring(importlib.import_module("evenflow.base.errors")))


def _text(text: str) -> str:
    """A docstring as Markdown: indented pictures become blocks of their own, names in two backticks stand in one."""
    parts = []
    for paragraph in text.split("\n\n"):
        is_picture = all(line.startswith("    ") for line in paragraph.split("\n"))
        parts.append(f"```text\n{paragraph}\n```" if is_picture else paragraph.replace("``", "`"))
    return "\n\n".join(parts).replace("\n```\n\n```text\n", "\n\n")
