"""Takes the pictures of the playground in docs/images, of a server that runs.

    octavo serve configs/quickstart.yaml
    python tests/deployments/octavo_serve/pages/screenshots.py http://127.0.0.1:8000/

What a model says differs from machine to machine, if only in its figures: look at them afterwards.
"""

from __future__ import annotations

import os
import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parents[4] / "docs" / "images"
WIDE, NARROW = {"width": 1200, "height": 820}, {"width": 400, "height": 780}


def ask(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    complete(page)


def complete(page: Any) -> None:
    page.locator(".turn.assistant:last-of-type:not(.growing)").wait_for()


def talk(page: Any) -> None:
    """An answer and another one, whose prompt is in the prefix cache."""
    page.get_by_label("System prompt").fill("You are a helpful teacher. Answer briefly, with an example.")
    page.get_by_label("Temperature").fill("0")
    page.locator("summary", has_text="Length").click()
    page.get_by_label("Max tokens").fill("220")
    ask(page, "What is a list comprehension in Python? Show one line of code.")
    page.get_by_role("button", name="Regenerate").click()
    complete(page)
    page.locator("#settings").evaluate("(side) => side.scrollTo(0, 0)")


def person(page: Any) -> None:
    """An answer that a schema writes most of."""
    page.locator("summary", has_text="Form of the answer").click()
    page.get_by_label("The answer is").select_option("json_schema")
    page.locator("#fields").get_by_role("button", name="Insert an example").first.click()
    ask(page, "Who was Ada Lovelace?")


def main(url: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    path = os.environ.get("OCTAVO_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[] if os.geteuid() else ["--no-sandbox"])
        for name, size, scheme, scene in (
            ("playground", WIDE, "light", talk),
            ("playground-dark", WIDE, "dark", talk),
            ("playground-forced", WIDE, "light", person),
            ("playground-narrow", NARROW, "light", talk),
        ):
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.set_default_timeout(120_000)
            page.goto(url)
            page.locator("#model option").first.wait_for(state="attached")
            page.keyboard.press("Control+,")
            scene(page)
            if size is NARROW:
                page.keyboard.press("Escape")
            picture = Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(256, kmeans=2)
            picture.save(FOLDER / f"{name}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
