"""Files of pages: what is said with them, who gets them, and that they lead nowhere else."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import httpx
import pytest

from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.service import Service
from octavo_serve.http.app import http_app
from octavo_serve.http.pages import FILES, FOLDER, PAGES, POLICY, TYPES

KEYED = Rules(Keys([KnownKey(Caller("alice"), sha256(b"sk-alice").digest())]))
Send = Callable[..., httpx.Response]


@pytest.fixture
def access() -> Access:
    return Access()


@pytest.fixture
def send(service: Service, backend: Any, access: Access) -> Send:
    async def run(method: str, path: str, root: str, **sent: Any) -> httpx.Response:
        transport = httpx.ASGITransport(http_app(service, backend, access), root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
            return await http.request(method, path, **sent)

    return lambda method, path, root="", **sent: asyncio.run(run(method, path, root, **sent))


def test_a_page_is_shown_with_its_policy(send: Send) -> None:
    answer = send("GET", "/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.content == (FOLDER / "playground.html").read_bytes()
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert send("HEAD", "/").headers["content-length"] == str(len(answer.content))


def test_the_policy_lets_a_page_run_and_reach_this_server_alone() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in POLICY


def test_a_file_that_is_known_is_not_sent_again(send: Send) -> None:
    tag = send("GET", "/pages/base.css").headers["etag"]
    for known in (tag, f'W/{tag}, "another"'):
        answer = send("GET", "/pages/base.css", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert send("GET", "/pages/base.css", headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize("where", sorted(FILES))
def test_files_need_no_key(send: Send, access: Access, where: str) -> None:
    access.rules = KEYED
    answer = send("GET", where)
    assert (answer.status_code, answer.content) == (200, FILES[where].content)
    assert answer.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("where", [*PAGES, "/pages/base.css"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_reading_is_open(send: Send, access: Access, where: str, method: str) -> None:
    access.rules = KEYED
    assert send(method, where).status_code == 401


@pytest.mark.parametrize("where", ["/pages/", "/pages/nothing.js", "/pages/../http/door.py", "/pages/%2e%2e/app.py"])
def test_other_names_are_no_files(send: Send, access: Access, where: str) -> None:
    assert send("GET", where).status_code == 404
    access.rules = KEYED
    assert send("GET", where).status_code == 401


def test_a_page_is_for_those_who_name_this_server(send: Send, access: Access) -> None:
    access.rules = Rules(hosts=frozenset())
    assert send("GET", "/", headers={"Host": "evil.example"}).status_code == 403


def test_below_a_prefix(send: Send, access: Access) -> None:
    access.rules = KEYED
    for path in ("/a/", "/a/pages/base.css"):
        assert send("GET", path, root="/a").status_code == 200
    assert send("GET", "/a", root="/a").headers["location"] == "http://localhost:8000/a/"


# ---- what the files hold --------------------------------------------------------------------------------------------

LOADED = re.compile(r"""(?:\bsrc=|<link\b[^>]*\bhref=|\bfrom |\bimport )["']([^"'#]+)["']""")  # <a href> loads nothing
ADDRESS = re.compile(r"\b(?:https?|wss?|ftp):\\?/\\?/[\w.-]+")
OWN = sorted(path for path in FOLDER.rglob("*") if path.is_file() and "vendor" not in path.parts)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_all_that_a_file_loads_is_served(path: Any) -> None:
    here = FOLDER.parent if path.suffix == ".html" else path.parent  # pages are shown above the folder
    loaded = [(here / name).resolve() for name in LOADED.findall(path.read_text())]
    assert [name for name in loaded if f"/pages/{name.relative_to(FOLDER)}" not in FILES] == []


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_file_names_another_server_or_holds_a_script_itself(path: Any) -> None:
    text = path.read_text()
    assert set(ADDRESS.findall(text)) <= {"http://www.w3.org"}  # the name of SVG's language: nothing is loaded
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)


def test_every_file_is_served_and_known_by_its_kind() -> None:
    assert [path.name for path in OWN if path.suffix not in TYPES] == []


def test_libraries_are_those_that_are_named_byte_for_byte() -> None:
    vendor = FOLDER / "vendor"
    libraries = tomllib.loads((vendor / "vendor.toml").read_text())["library"]
    for each in libraries:
        assert sha256((vendor / each["file"]).read_bytes()).hexdigest() == each["sha256"]
        assert each["integrity"].startswith("sha512-")
        assert each["licence"]
    named = {each["file"] for each in libraries} | {name for each in libraries for name in each["notices"]}
    assert {path.name for path in vendor.iterdir()} == named | {"vendor.toml"}
