"""Every command of Tutorial and Operate is run as it stands there, and prints what the page says."""

from __future__ import annotations

import shutil

import pytest
from executed_pages import DOCS, _is_like, blocks_of, run_pages, unmarked

from reference.markdown import GENERATED

TUTORIALS = ("first-adapter", "own-policy", "compressed-run")

ONE_SERVER = (
    "operate/deploy.md",
    "operate/keys.md",
    "operate/limits.md",
    "operate/adapters.md",
    "operate/interface.md",
    "operate/console.md",
    "operate/metrics.md",
    "operate/troubleshooting.md",
    "operate/ranks.md",
    "operate/sizing.md",
    "operate/upgrade.md",
)
"""Pages that speak to one server, in the order in which a reader meets them."""

ALONE = (
    "operate/compression.md",
    "operate/usage.md",
    "operate/quantised.md",
    "operate/load.md",
    "operate/compare.md",
    "operate/traces.md",
    "operate/vllm.md",
    "guides/fairness.md",
)

needs_curl = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl and jq are not installed")


def test_no_command_of_these_pages_escapes():
    written = (path for folder in ("tutorial", "operate") for path in (DOCS / folder).glob("*.md"))
    pages = {path.relative_to(DOCS).as_posix() for path in written if not path.read_text().startswith(GENERATED)}
    with_commands = {page for page in pages if any(block.mark == "run" for block in blocks_of(page))}
    assert with_commands <= {f"tutorial/{name}.md" for name in TUTORIALS} | set(ONE_SERVER) | set(ALONE)
    assert [where for page in sorted(pages) for where in unmarked(page)] == []


@needs_curl
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial(tmp_path, name):
    run_pages([f"tutorial/{name}.md"], tmp_path, with_slow=False, timeout_s=500)


@needs_curl
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_operating_one_server(tmp_path):
    run_pages(ONE_SERVER, tmp_path, with_slow=False, timeout_s=500)


@needs_curl
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(2400)
def test_operating_one_server_with_all_that_takes_long(tmp_path):
    run_pages(ONE_SERVER, tmp_path, with_slow=True, timeout_s=2300)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("page", [*(f"tutorial/{name}.md" for name in TUTORIALS[1:]), *ALONE])
def test_what_takes_long(tmp_path, page):
    run_pages([page], tmp_path, with_slow=True, timeout_s=900)


def test_what_a_page_says_is_printed_is_compared():
    assert _is_like("ready\nport 1234\n", "ready\nport ...\n")
    assert not _is_like("ready\nport 1234\n", "ready\n")
    assert _is_like('{"a":[1]}', '{"a":[1]}')
    assert not _is_like('{"a":1}', '{"a":[1]}')
