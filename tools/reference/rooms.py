"""The rooms of the house and the files in them, for the architecture page: one line a file, from its docstring."""

from __future__ import annotations

import ast
from pathlib import Path

from reference.markdown import cell, code, prose, table

SOURCES = Path(__file__).parents[2] / "src" / "evenflow"
BEGIN = "<!-- rooms: begin (written by `make reference` from the modules' first lines) -->"
END = "<!-- rooms: end -->"


def with_rooms(text: str, sources: Path = SOURCES) -> str:
    """The architecture page with its list of rooms and files made anew between the two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{rooms(sources)}\n\n{END}{after}"


def rooms(sources: Path = SOURCES) -> str:
    """A section for each package: what the room is for, then one row for each file that holds code."""
    parts = []
    for folder in sorted({file.parent for file in sources.rglob("*.py")}):
        files = sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")
        if not files:
            continue
        room = folder.relative_to(sources.parent).as_posix()
        about = first_line(folder / "__init__.py") if (folder / "__init__.py").exists() else ""
        rows = [[code(file.name), cell(first_line(file))] for file in files]
        parts.append(f"### `{room}/`\n\n{prose(about)}\n\n" + table(["file", "what it is for"], rows))
    return "\n\n".join(parts)


def first_line(file: Path) -> str:
    """The first sentence, or line, of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return text.split("\n\n")[0].split("\n")[0].strip()
