"""Links of every page lead somewhere, files that pages name exist, and no page of the manual is left out of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "evenflow"

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_NAMED_FILE = re.compile(r"`([\w./-]+\.(?:py|md|json|toml|svg))`")

NOT_OURS = {"config.json", "adapter_config.json", "generation_config.json", "tokenizer.json", "clients.toml", "mine.toml"}
"""Files of models, adapters and users that pages speak of."""


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).is_file()]


def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub and mkdocs make them from headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE):
        plain = re.sub(r"[`*]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).lower()
        found.add(re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip()))
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_named_files_exist(page):
    missing = []
    for target in ("".join(groups) for groups in _LINK.findall(prose(page))):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            missing.append(target)
    if not page.is_relative_to(ROOT / "docs" / "reference") and page.name != "CHANGELOG.md":
        missing += [name for name in _NAMED_FILE.findall(prose(page)) if not _is_file_of_ours(page, name)]
    assert missing == []


def _is_file_of_ours(page: Path, name: str) -> bool:
    """Pages name files by their path in the repository or the package, or by their name alone."""
    if name in NOT_OURS or "*" in name or any((base / name).exists() for base in (ROOT, SOURCES, ROOT / "tests", page.parent)):
        return True
    folders = (SOURCES, ROOT / "tests", ROOT / "benchmarks", ROOT / "docs", ROOT / "tools")
    return any(next(folder.rglob(name), None) is not None for folder in folders)


def test_every_page_has_its_place_in_the_manual():
    nav = (ROOT / "mkdocs.yml").read_text()
    manual = [page.relative_to(ROOT / "docs").as_posix() for page in pages() if page.is_relative_to(ROOT / "docs")]
    assert [page for page in manual if page not in nav] == []


def test_nothing_of_the_manual_is_fetched_from_elsewhere():
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert not re.search(r"extra_(css|javascript)|https?://", settings)


def test_the_list_of_lab_notes_counts_what_did_not_work():
    """Every page of notes is listed with its date and the number of results that are marked as negative."""
    listed = (ROOT / "docs" / "lab-notes.md").read_text()
    for page in sorted((ROOT / "docs" / "lab").glob("*.md")):
        count = page.read_text().count("**Negative")
        assert f"(lab/{page.name}) | {page.name[:10]} | {count or 'none'} |" in listed, page.name
