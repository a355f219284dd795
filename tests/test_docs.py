"""The pages: each has a place on the site and says when to read it; the reference is the code's; commands are whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
CODE = re.compile(r"^```\w*\n(.*?)^```|(?:^ {4}.*\n)+", re.DOTALL | re.MULTILINE)
BARE = re.compile(
    r"^ *(?:RAY_AUTH_MODE=token )?(?:octavo|octavo-loadtest|pip|python|ray|serve) (?!serve ─)[a-z-]", re.MULTILINE
)
LINK = re.compile(r"\]\(([^)#\s]+)")


def places(nav: list[Any]) -> Iterator[str]:
    """The pages of a nav in their order."""
    for entry in nav:
        for found in entry.values() if isinstance(entry, dict) else [entry]:
            yield from places(found) if isinstance(found, list) else [found]


def test_the_site_has_a_place_for_every_page_and_recipes_come_first() -> None:
    named = list(places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(named) == [page.name for page in PAGES]
    assert named[:2] == ["index.md", "recipes.md"]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "index.md"], ids=lambda page: page.stem)
def test_a_page_opens_with_when_it_is_needed_and_how(page: Path) -> None:
    title, opening, *_ = page.read_text().split("\n\n")
    assert re.fullmatch(r"# [^\n]+", title)
    assert re.match(r"\*\*When do I (?:change|use) this\?\*\*|\*\*When do I look here\?\*\*", opening)
    assert "**How?**" in opening


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_stay_on_the_site(page: Path) -> None:
    """The site holds docs/ alone: what is elsewhere is named, not linked."""
    assert [link for link in LINK.findall(page.read_text()) if link.startswith("../")] == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(page for page in PAGES if page.name != "log.md")], ids=lambda page: page.stem
)
def test_commands_can_be_pasted(page: Path) -> None:
    blocks = "\n".join(found[0] for found in CODE.finditer(page.read_text()))
    assert BARE.findall(blocks) == []


def test_the_reference_is_what_the_code_says() -> None:
    spec = spec_from_file_location("reference", ROOT / ".ci" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = module_from_spec(spec)
    spec.loader.exec_module(reference)
    for name, text in reference.pages().items():
        assert (ROOT / "docs" / name).read_text() == text, f"docs/{name}: run `make docs`"
        assert not [line for line in text.splitlines() if line.startswith("| `") and line.endswith("|  |  |  |")]
