"""The console in Chromium against real servers: ``make test-console``. Outside the default suite; needs no network."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="run by make test-console")

ROOT = Path(__file__).parents[2]
SHOTS = os.environ.get("EVENFLOW_CONSOLE_SHOTS")
NASTY = "<img src=x onerror=window.hacked=1>"


def hash_of(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class Server:
    """``evenflow serve --demo`` with keys; killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder, self.clients = folder, folder / "clients.toml"
        self.child: subprocess.Popen[bytes] | None = None
        self.write_clients("key-alice")

    def write_clients(self, alice: str) -> None:
        self.clients.write_text(
            f'[admin]\napi_keys = ["{hash_of("key-admin")}"]\n'
            f'[clients.alice]\nweight = 2.0\nrequests_per_minute = 6000\napi_keys = ["{hash_of(alice)}"]\n'
            f'[clients.bob]\ntokens_per_month = 1000000000\napi_keys = ["{hash_of("key-bob")}"]\n'
            f'[clients.gate]\ngateway = true\napi_keys = ["{hash_of("key-gate")}"]\n'
        )

    def start(self) -> None:
        python = os.environ["EVENFLOW_PYTHON"]
        words = [
            "serve",
            "--demo",
            "--port",
            str(self.port),
            "--clients",
            str(self.clients),
            "--root-path",
            "/ai",
            "--memory",
            "24MiB",
            "--accounts",
            str(self.folder / "usage.sqlite"),
        ]
        with (self.folder / "log").open("ab") as log:
            self.child = subprocess.Popen([python, "-m", "evenflow.cli.main", *words], stdout=log, stderr=log)
        for _ in range(1200):
            assert self.child.poll() is None, (self.folder / "log").read_text()[-2000:]
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError("the server is not ready after four minutes")

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.child is not None
        self.child.send_signal(number)
        self.child.wait(60)

    def say(self, key: str, text: str, model: str = "base", user: str = "", tokens: int = 24) -> int:
        headers = {"authorization": f"Bearer {key}", **({"x-client-id": user} if user else {})}
        body = {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
        if user:
            body["user"] = user
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60).status_code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if "EVENFLOW_PYTHON" not in os.environ:
        pytest.skip("run by make test-console")
    server = Server(tmp_path_factory.mktemp("console"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def load(server: Server) -> Iterator[None]:
    """Two clients that keep asking, through the whole module; what fails while the server is away is let go."""
    ended = threading.Event()
    models = [
        m["id"] for m in httpx.get(f"{server.url}/v1/models", headers={"authorization": "Bearer key-admin"}).json()["data"]
    ]

    def ask(key: str, number: int) -> None:
        while not ended.is_set():
            try:
                server.say(key, f"hello {number}", models[number % len(models)])
            except httpx.HTTPError:
                time.sleep(0.3)
            number += 1
            time.sleep(0.1)

    threads = [threading.Thread(target=ask, args=(key, n)) for key in ("key-alice", "key-bob", "key-bob") for n in (0, 3)]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        if path is None:
            pytest.skip("no chromium: apt-get install chromium")
        browser = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--enable-precise-memory-info", "--js-flags=--expose-gc"]
        )
        yield browser
        browser.close()


def sign_in(chromium: Any, server: Server, key: str, **options: Any) -> Any:
    """A page that is signed in; whatever its scripts raise, or its policy refuses, fails the test at its end."""
    page = chromium.new_context(**options).new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" and "Content Security" in m.text else None)
    page.goto(f"{server.url}/ai/")
    page.get_by_placeholder("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("live", exact=True).wait_for()
    return page


def shoot(page: Any, name: str, **options: Any) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), **options)


@pytest.mark.parametrize(("name", "options"), [
    ("light", {"viewport": {"width": 1280, "height": 1000}}),
    ("dark", {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "dark"}),
    ("phone", {"viewport": {"width": 390, "height": 844}}),
])  # fmt: skip
def test_live_shows_everything_to_administrators(chromium: Any, server: Server, load: None, name: str, options: Any) -> None:
    page = sign_in(chromium, server, "key-admin", **options)
    for title in ("Cumulative service", "Virtual counters", "First token", "Arena", "Adapter traffic", "Shed and rejected"):
        page.get_by_role("heading", name=title, exact=False).first.wait_for()
    page.get_by_role("cell", name="alice", exact=True).first.wait_for()
    page.get_by_role("cell", name="bob", exact=True).first.wait_for()
    page.wait_for_timeout(12_000 if SHOTS else 2000)
    assert page.locator(".uplot canvas").count() == 8
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    shoot(page, name)
    page.locator("details summary").first.click()
    page.get_by_role("columnheader", name="Mean").first.wait_for()
    page.get_by_role("button", name="Pause").click()
    before = page.locator(".tile b").first.inner_text()
    page.wait_for_timeout(1500)
    assert page.locator(".tile b").first.inner_text() == before
    assert page.faults == []


def test_a_client_sees_itself_alone(chromium: Any, server: Server, load: None) -> None:
    page = sign_in(chromium, server, "key-alice")
    page.get_by_role("cell", name="alice", exact=True).first.wait_for()
    assert page.get_by_role("link", name="Adapters").count() == 0
    page.get_by_role("link", name="Clients").click()
    page.get_by_role("cell", name="6000").wait_for()
    assert "bob" not in page.content()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert page.faults == []


def test_names_and_prompts_are_text(chromium: Any, server: Server) -> None:
    assert server.say("key-gate", NASTY, user=NASTY) == 200
    page = sign_in(chromium, server, "key-admin")
    page.get_by_role("cell", name=NASTY).first.wait_for()
    page.get_by_role("link", name="Clients").click()
    page.get_by_role("cell", name=NASTY).first.wait_for()
    page.get_by_role("link", name="Playground").click()
    page.get_by_label("Message").fill(NASTY)
    page.get_by_role("button", name="Send").click()
    page.get_by_text("ended by").wait_for()
    assert page.evaluate("window.hacked === undefined && document.querySelectorAll('img').length === 0")
    assert page.faults == []


def test_an_adapter_is_pinned_unloaded_and_loaded_by_click(chromium: Any, server: Server) -> None:
    page = sign_in(chromium, server, "key-admin")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("link", name="Adapters").click()
    first = page.locator("tbody tr td").first
    first.wait_for()
    name = first.inner_text()
    shoot(page, "adapters")
    page.get_by_role("button", name=f"Pin {name}", exact=True).click()
    page.get_by_role("button", name=f"Unpin {name}", exact=True).click()
    page.get_by_role("button", name=f"Pin {name}", exact=True).wait_for()
    source = next(ROOT.glob("src/evenflow/demo/assets/adapters/*/adapter_config.json")).parent
    page.get_by_label("Name of the adapter").fill("by-click")
    page.get_by_label("Folder of the adapter on the server").fill(str(source))
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_role("cell", name="by-click", exact=True).wait_for()
    page.get_by_label("Search adapters").fill("by-click")
    assert page.locator("tbody tr").count() == 1
    page.get_by_role("button", name="Unload by-click").click()
    page.get_by_role("cell", name="by-click", exact=True).wait_for(state="detached")
    assert page.faults == []


def test_the_playground_streams_side_by_side(chromium: Any, server: Server) -> None:
    page = sign_in(chromium, server, "key-admin")
    page.get_by_role("link", name="Playground").click()
    page.locator(".pick[aria-pressed=false]").first.click()
    page.get_by_label("Message").fill("hello")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("ended by").nth(1).wait_for()
    shoot(page, "playground")
    assert page.locator("pre.answer").count() == 2
    assert all(text.strip() for text in page.locator("pre.answer").all_inner_texts())
    page.get_by_role("button", name="Copy as Python").click()
    assert page.faults == []


FOCUSED = """() => {
    const one = document.activeElement, style = getComputedStyle(one);
    const text = one.getAttribute("aria-label") || one.textContent || "";
    return [one.tagName, text.trim(), style.outlineStyle, style.outlineWidth];
}"""


def tab_to(page: Any, tag: str, name: str) -> None:
    """Press the Tab key until the element is reached; whatever is passed on the way shows that it has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        found, text, style, width = page.evaluate(FOCUSED)
        if found != "BODY" and text != "To the content":
            assert style != "none", (found, text)
            assert width != "0px", (found, text)
        if found == tag and text == name:
            return
    raise AssertionError(f"the Tab key does not reach {tag} {name}")


def test_everything_is_reached_with_the_keyboard_alone(chromium: Any, server: Server, load: None) -> None:
    page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(f"{server.url}/ai/")
    page.get_by_placeholder("API key").wait_for()
    page.keyboard.type("key-admin")  # the field has the focus
    page.keyboard.press("Enter")
    page.get_by_text("live", exact=True).wait_for()
    tab_to(page, "BUTTON", "Pause")
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Resume").get_attribute("aria-pressed") == "true"
    tab_to(page, "SUMMARY", "As a table")
    page.keyboard.press("Enter")
    page.get_by_role("columnheader", name="Mean").first.wait_for()
    tab_to(page, "A", "Usage")  # beyond the last element the browser begins anew: nothing keeps the focus
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Usage").wait_for()
    assert page.evaluate("document.activeElement.id") == "main", "a new page is where the reader is"
    page.locator("a.skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_role("heading", name="Usage").wait_for()
    assert page.get_by_role("heading", name="Live").count() == 0
    tab_to(page, "A", "Adapters")
    page.keyboard.press("Enter")
    tab_to(page, "INPUT", "Search adapters")
    page.keyboard.type("no such adapter")
    page.locator("tbody tr").first.wait_for(state="detached")
    tab_to(page, "A", "Playground")
    page.keyboard.press("Enter")
    tab_to(page, "TEXTAREA", "Message")
    page.keyboard.type("hello")
    tab_to(page, "BUTTON", "Send")
    page.keyboard.press("Enter")
    page.get_by_text("ended by").wait_for()
    tab_to(page, "BUTTON", "Sign out")
    page.keyboard.press("Enter")
    page.get_by_placeholder("API key").wait_for()
    page.context.close()


@pytest.mark.parametrize(("percent", "width", "height"), [(200, 640, 512), (400, 320, 256)])
def test_pages_flow_at_every_zoom(chromium: Any, server: Server, load: None, percent: int, width: int, height: int) -> None:
    """A window of 1280 by 1024, magnified: the browser lays out for fewer, larger pixels, and nobody scrolls sideways."""
    page = sign_in(
        chromium, server, "key-admin", viewport={"width": width, "height": height}, device_scale_factor=percent / 100
    )
    for name in ("Live", "Adapters", "Clients", "Playground", "Usage"):
        page.get_by_role("link", name=name, exact=True).click()
        page.get_by_role("heading", name=name, exact=True).first.wait_for()
        page.wait_for_timeout(1200)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways at {percent} %"
        hidden = page.evaluate(
            "[...document.querySelectorAll('main button, main input, main select, nav a')].filter((one) =>"
            " one.checkVisibility() && !one.closest('.scroll') && one.getBoundingClientRect().right > innerWidth + 1)"
            ".map((one) => one.textContent)"
        )
        assert hidden == [], f"beyond the edge of {name} at {percent} %"
        shoot(page, f"zoom-{percent}-{name.lower()}")
    assert page.faults == []
    page.context.close()


def seconds_shown(page: Any) -> int:
    """From the left edge of the first chart to its right one, as its legend tells the times under the pointer."""
    box = page.locator(".uplot .u-over").first.bounding_box()
    moments = []
    for part in (0.005, 0.995):
        page.mouse.move(box["x"] + box["width"] * part, box["y"] + 40)
        text = page.locator(".uplot .u-legend .u-value").first.inner_text()
        hours, minutes, seconds = (int(word) for word in text.split(":"))
        moments.append(3600 * hours + 60 * minutes + seconds)
    return (moments[1] - moments[0]) % 86_400


def test_a_chart_is_zoomed_by_dragging_and_stays_so(chromium: Any, server: Server, load: None) -> None:
    page = sign_in(chromium, server, "key-admin", viewport={"width": 1280, "height": 1000})
    page.wait_for_timeout(20_000)
    whole = seconds_shown(page)
    assert whole >= 15
    box = page.locator(".uplot .u-over").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 60, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)
    zoomed = seconds_shown(page)
    assert 0 < zoomed <= 0.45 * whole
    page.wait_for_timeout(3000)
    assert abs(seconds_shown(page) - zoomed) <= 1, "new seconds do not move it"
    page.locator(".uplot .u-over").first.dblclick()
    page.wait_for_timeout(1500)
    assert seconds_shown(page) >= whole
    assert page.faults == []
    page.context.close()


def test_a_revoked_key_ends_the_page_with_its_reason(chromium: Any, server: Server) -> None:
    page = sign_in(chromium, server, "key-alice")
    assert server.child is not None
    server.write_clients("key-other")
    server.child.send_signal(signal.SIGHUP)
    page.get_by_role("alert").get_by_text("not known").wait_for()
    server.write_clients("key-alice")
    server.child.send_signal(signal.SIGHUP)
    page.wait_for_timeout(500)
    page.get_by_placeholder("API key").fill("key-alice")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("live", exact=True).wait_for()
    assert page.faults == []


def test_a_server_that_dies_is_found_again_when_it_is_back(chromium: Any, server: Server) -> None:
    page = sign_in(chromium, server, "key-admin")
    server.stop(signal.SIGKILL)
    page.get_by_text("server away").wait_for()
    server.start()
    page.get_by_text("live", exact=True).wait_for()
    assert page.faults == []


def test_memory_does_not_grow(chromium: Any, server: Server, load: None) -> None:
    """``EVENFLOW_CONSOLE_MINUTES``: 1 unless said otherwise."""
    page = sign_in(chromium, server, "key-admin")

    def settled_bytes() -> int:
        page.evaluate("gc()")
        return int(page.evaluate("performance.memory.usedJSHeapSize"))

    page.wait_for_timeout(10_000)
    before = settled_bytes()
    page.wait_for_timeout(int(60_000 * float(os.environ.get("EVENFLOW_CONSOLE_MINUTES", "1"))))
    grown = settled_bytes() - before
    print(f"{before} bytes, and {grown} more later")
    assert grown < 8 << 20
    assert page.faults == []


def test_usage_is_everybodys_for_administrators_and_a_clients_own(chromium, server, load) -> None:
    time.sleep(2)
    page = sign_in(chromium, server, "key-admin", viewport={"width": 1280, "height": 900})
    page.get_by_role("link", name="Usage").click()
    for name in ("alice", "bob"):
        page.get_by_role("cell", name=name, exact=True).first.wait_for()
    budgets = page.get_by_role("region", name="Budgets of this month")
    assert "of 1,000,000,000 (0 %)" in budgets.get_by_role("row", name="bob").inner_text()
    assert budgets.get_by_text("alice").count() == 0
    page.get_by_label("By").select_option("day")
    page.get_by_role("columnheader", name="day").wait_for()
    assert page.get_by_role("cell", name="alice", exact=True).count() == 0
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/usage.png")
    assert page.faults == []
    page.context.close()
    own = sign_in(chromium, server, "key-alice", viewport={"width": 1280, "height": 900})
    own.get_by_role("link", name="Usage").click()
    own.get_by_role("cell", name="alice", exact=True).first.wait_for()
    assert "bob" not in own.locator("main").inner_text()
    assert own.get_by_role("region", name="Budgets of this month").count() == 0
    assert own.faults == []
    own.context.close()
