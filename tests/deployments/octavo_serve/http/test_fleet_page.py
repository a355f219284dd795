"""The page of the live view in a real Chromium: what it draws, whom it asks for a key, how it comes back."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest
import uvicorn

from octavo.routing.policy import Query
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.fleet import Fleet, State, Told
from octavo_serve.api.service import Service
from octavo_serve.command.serve_command import free_block
from octavo_serve.http.app import http_app

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

COST = {"step": 0.01, "token": 1e-5, "sequence": 1e-4, "attended": 0.0, "context": 1e-9}
SHARD = {
    "model": "tiny", "status": "ready", "decoding": 3, "prefilling": 1, "queued": 2, "places": 8, "blocks": 100,
    "blocks_free": 60, "blocks_cached": 25, "start_seconds": 0.5, "step_seconds": 0.012, "prompt_tokens": 100,
    "cached_tokens": 40, "generated_tokens": 1000, "cost": COST, "start": {"imports": 0.3, "model": 1.2}, "warm": False,
}  # fmt: skip
MODEL = {
    "status": "ready", "aliases": ["small"], "policy": "prefix_affinity", "shards": 1, "least": 1, "most": 4,
    "replicas": {"RUNNING": 1, "STARTING": 1}, "waiting": 0,
}  # fmt: skip
CHANGE = {"at": 999.0, "before": 1, "after": 2, "reason": "waiting", "demand": 1.7, "met": True}
SCALING = {"decided_at": 1e3, "wanted": 2, "running": 1, "reason": "kept", "demand": 1.2, "changes": [CHANGE]}


class Scripted:
    """A fleet with one shard, and another from the third look on; a request is routed before each look."""

    def __init__(self) -> None:
        self.looks = 0
        self._router = Router(RoutingConfig())

    def listen(self, told: Told | None) -> None:
        self._router.told = None if told is None else lambda decision: told("tiny", decision)

    async def look(self) -> State:
        self.looks += 1
        self._router.route(f"chatcmpl-{self.looks:08d}", [], Query(500), ["abc", "def"], now=float(self.looks))
        names = ["abc", "def"] if self.looks > 2 else ["abc"]
        shards = {name: SHARD | {"generated_tokens": 1000 + 50 * self.looks} for name in names}
        about = {"at": 1000.0 + self.looks, "gateway": "gate", "gateways": 2, "version": "0"}
        return {**about, "models": {"tiny": MODEL}, "shards": shards, "scaling": {"tiny": SCALING}}


class Site:
    """A server of the page, in a thread of its own."""

    def __init__(self, service: Service, backend: Any) -> None:
        self.access = Access()
        self.port = free_block(1)
        self.loop = asyncio.new_event_loop()
        self.fleet = Fleet(Scripted(), period=0.1)
        app = http_app(service, backend, self.access, fleet=self.fleet)
        self._server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="critical", lifespan="off"))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._server.serve())
        self.loop.close()

    def call(self, function: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(function)

    def close(self) -> None:
        self.call(lambda: self.fleet.end("the test is over", over=True))
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def site(service: Service, backend: Any) -> Iterator[Site]:
    site = Site(service, backend)
    yield site
    site.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose errors are the test's."""
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme="dark")
    page, wrong = context.new_page(), list[str]()
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    context.close()
    assert wrong == []


def test_what_is_drawn(site: Site, page: Any) -> None:
    see = playwright.expect
    page.goto(f"http://localhost:{site.port}/fleet")
    see(page.get_by_role("status")).to_have_text("Live from gateway gate, one of 2")
    see(page.get_by_text("1 of 1 to 4 shards, 1 starting")).to_be_visible()
    see(page.get_by_role("img", name="40 in use, 25 cached, 35 free")).to_have_count(2)
    see(page.get_by_role("img", name=re.compile("^Tokens per second.*now [1-9]"))).to_be_visible()
    changes = page.locator("#changes tbody")
    see(changes).to_contain_text("1 → 2 shards")
    see(changes).to_contain_text("shard def came")
    see(page.locator("#scaling-now")).to_contain_text("2 wanted, 1 running; demand is 1.2 shards")
    see(page.locator("#costs tbody tr")).to_have_count(2)
    page.locator("#decisions button").nth(1).press("Enter")
    see(page.locator("#formula tbody .best")).to_have_count(1)
    see(page.get_by_role("button", name="Follow the latest")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    cells = "(canvas) => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    assert page.locator("canvas").first.evaluate(cells) > 4
    see(page.locator("body")).to_have_css("background-color", "rgb(25, 26, 27)")


def test_it_asks_for_a_key_and_says_when_one_will_not_do(site: Site, page: Any) -> None:
    see = playwright.expect
    known = [KnownKey(Caller(name, name == "ops"), sha256(name.encode()).digest()) for name in ("alice", "ops")]
    site.access.rules = Rules(Keys(known), disclose=False)
    page.goto(f"http://localhost:{site.port}/fleet")
    for key, said in (("nonsense", "not one of this server's"), ("alice", "operator: true")):
        see(page.locator("#view")).to_be_hidden()
        page.get_by_label("API key of an operator").fill(key)
        page.keyboard.press("Enter")
        see(page.locator("#gate-why")).to_contain_text(said)
    page.get_by_label("API key of an operator").fill("ops")
    page.keyboard.press("Enter")
    see(page.get_by_role("status")).to_contain_text("Live")
    page.reload()
    see(page.get_by_role("status")).to_contain_text("Live")
    assert page.evaluate("Object.keys(localStorage).length") == 0


def test_it_says_that_it_was_cut_off_and_comes_back(site: Site, page: Any) -> None:
    see = playwright.expect
    page.goto(f"http://localhost:{site.port}/fleet")
    see(page.locator("article.shard").first).to_be_visible()
    site.call(lambda: site.fleet.end("a gateway is about to end"))
    see(page.get_by_role("status")).to_contain_text("a gateway is about to end. Next try in")
    see(page.locator("article.shard").first).to_be_visible()
    page.get_by_role("button", name="Now").click()
    see(page.get_by_role("status")).to_contain_text("Live")
