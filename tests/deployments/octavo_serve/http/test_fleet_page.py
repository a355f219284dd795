"""The page of the live view in a real Chromium: what it draws, whom it asks for a key, how it comes back."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import pytest
import uvicorn

from octavo.routing.policy import Query
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.explaining import Explaining
from octavo_serve.api.fleet import Fleet, State, Told
from octavo_serve.api.service import Service
from octavo_serve.command.serve_command import free_block
from octavo_serve.http.app import http_app

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("OCTAVO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ALONE = [] if os.geteuid() else ["--no-sandbox"]  # root has no sandbox
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

WANTED = re.compile(r"2 wanted, 1 running; demand is 1.2 shards \(kept: .*\), as of \d")


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


async def see(service: Service, backend: Any, scenario: Callable[[Any, Fleet, Access], Awaitable[None]]) -> None:
    """A scenario with a narrow, dark page, its server in the same event loop; an error of the page fails it."""
    access, fleet, port = Access(), Fleet(Scripted(), period=0.1), free_block(1)
    app = http_app(service, backend, access, fleet=fleet)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    try:
        async with playwright.async_playwright() as started:
            browser = await started.chromium.launch(executable_path=CHROMIUM, args=ALONE)
            page = await browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
            wrong: list[str] = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.set_default_timeout(20_000)
            playwright.expect.set_options(timeout=20_000)
            await page.goto(f"http://localhost:{port}/fleet")
            await scenario(page, fleet, access)
            await browser.close()
            assert wrong == []
    finally:
        fleet.end("the test is over", over=True)
        server.should_exit = True
        await serving


def test_what_is_drawn(service: Service, backend: Any) -> None:
    async def scenario(page: Any, fleet: Fleet, access: Access) -> None:
        expect = playwright.expect
        await expect(page.get_by_role("status")).to_have_text("Live from gateway gate, one of 2")
        await expect(page.get_by_text("1 of 1 to 4 shards, 1 starting")).to_be_visible()
        await expect(page.get_by_role("img", name="40 in use, 25 cached, 35 free")).to_have_count(2)
        await expect(page.get_by_role("img", name=re.compile("^Tokens per second.*now [1-9]"))).to_be_visible()
        await expect(page.locator("#changes tbody")).to_contain_text("1 → 2 shards")
        await expect(page.locator("#changes tbody")).to_contain_text("shard def came")
        await expect(page.locator("#scaling-now")).to_contain_text(WANTED)
        await expect(page.locator("#costs tbody tr")).to_have_count(2)
        await page.locator("#decisions button").nth(1).press("Enter")
        await expect(page.locator("#formula tbody .best")).to_have_count(1)
        await expect(page.get_by_role("button", name="Follow the latest")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 400
        colours = "(c) => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
        assert await page.locator("canvas").first.evaluate(colours) > 4
        await expect(page.locator("body")).to_have_css("background-color", "rgb(25, 26, 27)")

    asyncio.run(see(service, backend, scenario))


def test_requests_are_listed_and_say_why_they_took_so_long(service: Service, backend: Any) -> None:
    async def scenario(page: Any, fleet: Fleet, access: Access) -> None:
        expect = playwright.expect
        await expect(page.locator("#no-requests")).to_contain_text("explain_bytes")
        service.explaining = Explaining(2**20, service.telemetry)
        body = {"model": "tiny", "messages": [{"role": "user", "content": "<b>Hello</b>"}]}
        assert (await page.request.post("v1/chat/completions".join(page.url.rsplit("fleet", 1)), data=body)).ok
        await page.get_by_label("Show the").select_option("slowest")
        await page.get_by_role("button", name=re.compile("^Why did chatcmpl-.* take")).press("Enter")
        await expect(page.locator("#requests-why")).to_contain_text("It took")
        await expect(page.locator("#requests-why .spans tbody tr").first).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 400

    asyncio.run(see(service, backend, scenario))


def test_it_asks_for_a_key_and_says_when_one_will_not_do(service: Service, backend: Any) -> None:
    async def scenario(page: Any, fleet: Fleet, access: Access) -> None:
        expect = playwright.expect
        known = [KnownKey(Caller(name, name == "ops"), sha256(name.encode()).digest()) for name in ("alice", "ops")]
        access.rules = Rules(Keys(known), disclose=False)
        await page.reload()
        await expect(page.locator("#gate-why")).to_contain_text("An API key is needed")
        for key, said in (("nonsense", "not one of this server's"), ("alice", "operator: true")):
            await expect(page.locator("#view")).to_be_hidden()
            await page.get_by_label("API key of an operator").fill(key)
            await page.keyboard.press("Enter")
            await expect(page.locator("#gate-why")).to_contain_text(said)
        await page.get_by_label("API key of an operator").fill("ops")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_contain_text("Live")
        await page.reload()
        await expect(page.get_by_role("status")).to_contain_text("Live")
        assert await page.evaluate("Object.keys(localStorage).length") == 0

    asyncio.run(see(service, backend, scenario))


def test_it_says_that_it_was_cut_off_and_comes_back(service: Service, backend: Any) -> None:
    async def scenario(page: Any, fleet: Fleet, access: Access) -> None:
        expect = playwright.expect
        await expect(page.locator("article.shard").first).to_be_visible()
        fleet.end("a gateway is about to end")
        await expect(page.get_by_role("status")).to_contain_text("a gateway is about to end. Next try in")
        await expect(page.locator("article.shard").first).to_be_visible()
        await expect(page.get_by_role("status")).to_contain_text("Live")

    asyncio.run(see(service, backend, scenario))
