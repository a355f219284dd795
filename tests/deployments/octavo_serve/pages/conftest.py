"""A real Chromium, which reaches the server under test and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

NAMES = "chromium", "chromium-browser", "google-chrome"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser of this machine, or that of OCTAVO_CHROMIUM."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: see the extra `test`")
    path = os.environ.get("OCTAVO_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium: install the system's package `chromium`, or name one by OCTAVO_CHROMIUM")
    alone = [] if os.geteuid() else ["--no-sandbox"]  # root has no sandbox
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=alone)
        yield browser
        browser.close()


class Visit:
    """What happened while a page was open.

    Attributes:
        errors: of the page's scripts and policy.
        elsewhere: addresses beyond the server that something asked for.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.elsewhere: list[str] = []


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open a page as a new visitor: `visit(url, **settings of the browser's context)`.

    Afterwards nothing has failed in it, and nothing was asked for elsewhere; `page.visit.errors.clear()` forgives.
    """
    contexts, visits = [], []

    def opened(url: str, **settings: Any) -> Any:
        context = chromium.new_context(**settings)
        context.set_default_timeout(5_000)
        seen = Visit()
        server = url.split("/", 3)[2]

        def route(request: Any) -> None:
            if request.request.url.split("/", 3)[2] == server:
                request.continue_()
            else:
                seen.elsewhere.append(request.request.url)
                request.abort()

        context.route("**/*", route)
        page = context.new_page()
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
        page.visit = seen
        page.goto(url)
        contexts.append(context)
        visits.append(seen)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [seen.elsewhere for seen in visits if seen.elsewhere] == []
    assert [seen.errors for seen in visits if seen.errors] == []
