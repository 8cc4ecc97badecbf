"""The licences of what is installed with EvenFlow, from the metadata of the packages (``make sbom``)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reference.markdown import cell, page, table

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "licences.md"

INTRO = """\
What `pip install evenflow` brings along, without extras: every package, its tested version and its
licence as the package states it. `requirements.lock` has the hashes, and `make sbom` writes a bill
of materials in CycloneDX's form beside this page. EvenFlow itself is under Apache-2.0. The built
files of the console hold uPlot 1.6.32, (c) 2022 Leon Sorokin, MIT."""


def dependencies(name: str = "evenflow") -> list[str]:
    """Canonical names of everything that ``name`` needs here, without extras, in alphabetical order."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for line in requires(waiting.pop()) or ():
            requirement = Requirement(line)
            needed = canonicalize_name(requirement.name)
            if needed in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
                continue
            try:
                version(needed)
            except PackageNotFoundError:
                continue
            found.add(needed)
            waiting.append(needed)
    return sorted(found)


def licence(name: str) -> str:
    """What a package says of its licence: the expression, else its classifiers, else the first line of the field."""
    about = metadata(name).json
    classifiers = [line.rsplit(" :: ", 1)[1] for line in about.get("classifier", ()) if line.startswith("License ::")]
    field = str(about.get("license") or "").strip()
    return str(about.get("license_expression") or "") or ", ".join(classifiers) or field.split("\n")[0][:80] or "not stated"


def licences_page() -> str:
    """The page, one row for each package."""
    rows = [[f"`{name}`", version(name).partition("+")[0], cell(licence(name))] for name in dependencies()]
    return page("Licences", INTRO, table(["package", "version", "licence"], rows))


if __name__ == "__main__":
    PAGE.write_text(licences_page())
    print(PAGE)
