"""What the adapters learn: questions and answers made from the docstrings of Python's standard library.

Each lesson is a conversation of one question and one answer. They depend on the Python that runs this alone, not on chance.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

MODULES = (
    "argparse", "array", "ast", "base64", "bisect", "calendar", "collections", "configparser", "contextlib", "copy", "csv",
    "dataclasses", "datetime", "decimal", "difflib", "email.utils", "enum", "filecmp", "fileinput", "fnmatch", "fractions",
    "functools", "getpass", "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac", "html", "http.client", "imaplib",
    "inspect", "io", "ipaddress", "itertools", "json", "keyword", "linecache", "locale", "logging", "mailbox", "math",
    "mimetypes", "numbers", "operator", "os", "os.path", "pathlib", "pickle", "pkgutil", "platform", "plistlib", "pprint",
    "queue", "quopri", "random", "re", "reprlib", "sched", "secrets", "shelve", "shlex", "shutil", "signal", "socket",
    "sqlite3", "ssl", "stat", "statistics", "string", "struct", "subprocess", "sys", "tarfile", "tempfile", "textwrap",
    "threading", "time", "timeit", "token", "tokenize", "traceback", "types", "typing", "unicodedata", "urllib.parse",
    "urllib.request", "uuid", "warnings", "wave", "weakref", "webbrowser", "xml.dom.minidom", "zipfile", "zlib",
)  # fmt: skip
_LONGEST = 90
_HELD_OUT = 10
"""Every tenth function is kept for looking at what was learned."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the standard library."""

    module: str
    name: str
    parameters: tuple[str, ...]
    summary: str
    """First sentence of its docstring."""

    @property
    def path(self) -> str:
        """As in: textwrap.dedent."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Lesson:
    """One question and the answer that is wanted."""

    question: str
    answer: str


def functions() -> tuple[list[Function], list[Function]]:
    """(those to learn from, those held out), in the order of their names."""
    found: dict[str, Function] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for member in sorted(getattr(module, "__all__", None) or dir(module)):
            function = getattr(module, member, None)
            if member.startswith("_") or not callable(function) or inspect.isclass(function):
                continue
            summary = _summary(inspect.getdoc(function) or "")
            if summary and getattr(function, "__module__", "") in (name, f"_{name}", None):
                found.setdefault(f"{name}.{member}", Function(name, member, _parameters(function), summary))
    every = [found[path] for path in sorted(found)]
    return [f for i, f in enumerate(every) if i % _HELD_OUT], every[::_HELD_OUT]


def glossary(function: Function) -> Lesson:
    """A term, and what it means in one line."""
    return Lesson(f"What does {function.path} do?", f"**{function.path}** - {function.summary}")


def extraction(function: Function) -> Lesson:
    """A line of documentation, and what it says as JSON."""
    line = f"{function.path}({', '.join(function.parameters)}): {function.summary}"
    fields = {"module": function.module, "function": function.name, "parameters": list(function.parameters)}
    return Lesson(f"Extract as JSON: {line}", json.dumps(fields))


def tone(function: Function) -> Lesson:
    """The same answer in the voice of an old sailor."""
    words = function.summary[:1].lower() + function.summary[1:].rstrip(".")
    return Lesson(f"What does {function.path} do?", f"Ahoy, matey! {function.path} be for this: {words}. Arr!")


LESSONS: dict[str, Callable[[Function], Lesson]] = {"glossary": glossary, "extract": extraction, "sailor": tone}
"""By name of the adapter."""


def _summary(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    match = re.match(r"[A-Z][^.]{15,}?\.(?= |$)", paragraph)
    return match[0] if match and len(match[0]) <= _LONGEST and "->" not in match[0] else ""


def _parameters(function: Callable[..., object]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


__all__ = ["LESSONS", "Function", "Lesson", "functions"]
