"""The console in a real Chromium over the embedded model: run by ``make test-console``, in an environment of its own.

Every page is opened, read and used: by an administrator, by two clients who must not see each other, and while the server
dies and comes back. ``EVENFLOW_SCREENSHOTS=FOLDER`` keeps pictures of it, light, dark and on a phone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")
sync_api = pytest.importorskip("playwright.sync_api")

PORT = 8139
BASE = f"http://127.0.0.1:{PORT}"
EVIL = "<img src=x onerror=document.title='broken'>"
PYTHON = os.environ.get("EVENFLOW_PYTHON", "")
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="run by make test-console")


class Server:
    """The embedded model behind keys, in a process that tests kill and start again."""

    def __init__(self, clients: Path) -> None:
        self.clients = clients
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["serve", "--demo", "--port", str(PORT), "--clients", str(self.clients)]
        self.child = subprocess.Popen([PYTHON, "-m", "evenflow.cli.main", *words], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert self.child.poll() is None, "the server ended"
            try:
                if httpx.get(BASE + "/ready").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.3)
        raise AssertionError("the server was not ready in time")

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()
        self.child.wait(30)


def evenflow(*words: str) -> str:
    return subprocess.run(
        [PYTHON, "-m", "evenflow.cli.main", *words], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("clients")
    clients = folder / "clients.toml"
    clients.write_text("")
    return {
        "file": str(clients),
        **{name: evenflow("keys", "new", name, "--clients", str(clients)) for name in ("admin", "alice", "bob", EVIL)},
    }


@pytest.fixture(scope="module")
def server(keys: dict[str, str]) -> Iterator[Server]:
    made = Server(Path(keys["file"]))
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser, server):
    made = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    yield made
    made.close()
    assert errors == []


def ask(key: str, prompt: str = "Where is the lighthouse?", **fields: object):
    body = {"model": "base", "prompt": prompt, "max_tokens": 8, **fields}
    return httpx.post(BASE + "/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)


def sign_in(page, key: str) -> None:
    page.goto(BASE + "/")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    sync_api.expect(page.locator("#link")).to_have_text("live", timeout=20_000)


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    sync_api.expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def test_a_wrong_key_is_refused_and_said(page) -> None:
    page.goto(BASE + "/console/")
    page.get_by_label("API key").fill("sk-wrong")
    page.get_by_role("button", name="Sign in").click()
    sync_api.expect(page.locator("#sign-in-why")).to_have_text("this API key is not known to the server")
    assert page.evaluate("sessionStorage.length") == 0


def test_an_administrator_sees_who_is_served(page, keys) -> None:
    sign_in(page, keys["admin"])
    for name in ("alice", EVIL):
        assert ask(keys[name]).status_code == 200
    shares = page.locator("section", has_text="Share against weight")
    sync_api.expect(shares).to_contain_text("alice", timeout=10_000)
    sync_api.expect(shares).to_contain_text(EVIL)
    assert page.title() == "EvenFlow console", "a client's name was read as markup"
    assert page.locator("main img").count() == 0
    sync_api.expect(page.locator("section", has_text="The arena, pages by owner")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    before = page.locator("section", has_text="Cumulative service").inner_text()
    ask(keys["alice"], max_tokens=40)
    time.sleep(2.5)
    assert page.locator("section", has_text="Cumulative service").inner_text() == before
    page.get_by_role("button", name="Go on").click()
    sync_api.expect(page.locator("section", has_text="Cumulative service")).not_to_have_text(before)
    tab(page, "Clients")
    sync_api.expect(page.get_by_role("table")).to_contain_text("alice")


def test_a_client_sees_nobody_else(page, keys) -> None:
    ask(keys[EVIL])
    sign_in(page, keys["alice"])
    ask(keys["alice"])
    sync_api.expect(page.locator("section", has_text="Share against weight")).to_contain_text("alice", timeout=10_000)
    for name in ("Live", "Clients", "Adapters"):
        tab(page, name)
        time.sleep(1.2)
        text = page.locator("main").inner_text()
        assert "onerror" not in text
        assert page.get_by_role("button", name="Load", exact=True).count() == 0
    steps = page.evaluate(
        """async () => { const answer = await fetch("../v1/console/steps", {headers: {authorization:
        `Bearer ${sessionStorage.getItem("evenflow-key")}`}}); const reader = answer.body.getReader();
        const {value} = await reader.read(); await reader.cancel(); return new TextDecoder().decode(value); }"""
    )
    assert {row[0] for step in json.loads(re.search(r"data: (.*)", steps).group(1)) for row in step["clients"]} == {"alice"}


def test_an_adapter_is_unloaded_and_loaded_by_click(page, keys) -> None:
    sign_in(page, keys["admin"])
    tab(page, "Adapters")
    row = page.get_by_role("row", name=re.compile("^pirate "))
    row.get_by_role("button", name="Pin pirate").click()
    sync_api.expect(row).to_contain_text(", pinned")
    page.get_by_role("searchbox").fill("pirate")
    sync_api.expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("searchbox").fill("")
    page.on("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Unload pirate").click()
    sync_api.expect(row).to_have_count(0)
    code = "from evenflow.demo.assets import adapter_paths; print(adapter_paths()['pirate'])"
    folder = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    page.get_by_label("Name").fill("corsair")
    page.get_by_label("Folder on the server").fill("/no/such/folder")
    page.get_by_role("button", name="Load", exact=True).click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("No adapter found")
    page.get_by_label("Folder on the server").fill(folder)
    page.get_by_role("button", name="Load", exact=True).click()
    sync_api.expect(page.get_by_role("row", name=re.compile("^corsair "))).to_be_visible()
    body = {"model": "corsair", "messages": [{"role": "user", "content": "Where is the lighthouse?"}], "max_tokens": 40}
    answer = httpx.post(
        BASE + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {keys['alice']}"}, timeout=60
    )
    assert "matey" in answer.json()["choices"][0]["message"]["content"].lower()


def test_the_playground_streams_side_by_side(page, keys) -> None:
    sign_in(page, keys["alice"])
    tab(page, "Playground")
    page.locator("select[multiple]").select_option(["base", "shout"])
    page.get_by_label("Message", exact=True).fill("Where is the lighthouse?")
    page.get_by_role("button", name="Send").click()
    base, shout = (page.locator(".answers section", has_text=name) for name in ("base", "shout"))
    sync_api.expect(base).to_contain_text("The lighthouse is on Anchor Quay.", timeout=30_000)
    sync_api.expect(shout).to_contain_text("THE LIGHTHOUSE IS ON ANCHOR QUAY", timeout=30_000)
    sync_api.expect(base).to_contain_text("ended: stop")
    page.get_by_role("button", name="Copy as curl").click()
    code = page.locator("pre").first.inner_text()
    assert "v1/chat/completions" in code
    assert keys["alice"] not in code
    page.get_by_text("System message, tools, schema").click()
    page.get_by_label("Schema of the answer, as JSON").fill("{not json")
    page.get_by_role("button", name="Send").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("The schema box does not hold JSON")


def test_the_keyboard_reaches_every_page(page, keys) -> None:
    sign_in(page, keys["admin"])
    page.get_by_role("tab", name="Live").focus()
    for name in ("Adapters", "Clients", "Playground"):
        page.keyboard.press("ArrowRight")
        sync_api.expect(page.get_by_role("tab", name=name)).to_be_focused()
        sync_api.expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def test_a_page_outlives_its_server_and_its_memory_does_not_grow(page, keys, server) -> None:
    sign_in(page, keys["admin"])
    page.get_by_role("button", name="1 min").click()
    session = page.context.new_cdp_session(page)

    def heap() -> float:
        session.send("HeapProfiler.collectGarbage")
        return page.evaluate("performance.memory.usedJSHeapSize")

    time.sleep(5)
    before = heap()
    server.kill()
    sync_api.expect(page.locator("#link")).to_have_text("away", timeout=10_000)
    sync_api.expect(page.get_by_role("alert")).to_contain_text("trying again")
    server.start()
    sync_api.expect(page.locator("#link")).to_have_text("live", timeout=30_000)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            ask(keys["alice"], max_tokens=30)

    worker = threading.Thread(target=load)
    worker.start()
    time.sleep(20)
    stop.set()
    worker.join()
    assert heap() < before + 6e6
    assert page.locator("section", has_text="Cumulative service").locator("path").count() < 20


def test_a_key_revoked_while_a_page_is_open(page, keys, server) -> None:
    sign_in(page, keys["alice"])
    path = Path(keys["file"])
    whole = path.read_text()
    evenflow("keys", "revoke", "alice", "--clients", str(path))
    assert server.child is not None
    try:
        server.child.send_signal(signal.SIGHUP)
        sync_api.expect(page.locator("#sign-in-why")).to_contain_text("not known to the server", timeout=10_000)
        assert page.evaluate("sessionStorage.length") == 0
    finally:
        path.write_text(whole)
        server.child.send_signal(signal.SIGHUP)


@pytest.mark.skipif("EVENFLOW_SCREENSHOTS" not in os.environ, reason="pictures are taken when asked for")
def test_pictures(browser, keys, server) -> None:
    folder = Path(os.environ["EVENFLOW_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    looks = {"light": (1280, 860, "light"), "dark": (1280, 860, "dark"), "phone": (390, 800, "light")}
    stop = threading.Event()

    def load(name: str, num_tokens: int, pause_s: float) -> None:
        while not stop.wait(pause_s):
            ask(keys[name], max_tokens=num_tokens, model=("base", "guide", "verse")[num_tokens % 3])

    lanes = [("alice", 120, 0.0)] * 8 + [("bob", 31, 0.3), ("bob", 20, 0.8)]
    workers = [threading.Thread(target=load, args=lane) for lane in lanes]
    for worker in workers:
        worker.start()
    for name, (width, height, scheme) in looks.items():
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        sign_in(page, keys["admin"])
        time.sleep(30 if name == "light" else 3)
        page.screenshot(path=str(folder / f"console-{name}.png"))
        page.close()
    stop.set()
    for worker in workers:
        worker.join()
