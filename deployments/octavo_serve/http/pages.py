"""Pages for people: the files of the folder `pages`, as they are. There is no build step, and nothing is loaded from
elsewhere.

    /                 the playground; what else is in PAGES
    /pages/NAME       what pages load: style sheets, modules, libraries

Files hold nothing secret, so they need no key: a page asks for one and sends it with its requests to the API. What a
page may do is in POLICY: run scripts of this server alone, and speak to nobody else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent.parent / "pages"

PAGES = {"/": "playground.html", "/fleet": "fleet.html"}
"""Path -> the file that is shown there."""

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""Suffix -> content type; files of other kinds are not served."""

POLICY = "; ".join([
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",  # text becomes HTML through a sanitiser, or not at all
    "trusted-types dompurify",
])  # fmt: skip
"""The Content-Security-Policy of every file."""

SAFE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # may be kept, but is asked for again: a new version shows at once
}


@dataclass(frozen=True, slots=True)
class File:
    """A file that is served.

    Attributes:
        kind: its content type.
        tag: changes with its content.
    """

    content: bytes
    kind: str
    tag: str


def _files() -> dict[str, File]:
    """Every file of the folder by its path below /pages, and the pages by theirs."""
    found = {f"/pages/{path.relative_to(FOLDER).as_posix()}": path for path in FOLDER.rglob("*")}
    files = {where: _file(path) for where, path in found.items() if path.suffix in TYPES}
    return files | {where: files[f"/pages/{name}"] for where, name in PAGES.items()}


def _file(path: Path) -> File:
    content = path.read_bytes()
    return File(content, TYPES[path.suffix], f'"{blake2b(content, digest_size=12).hexdigest()}"')


FILES = _files()
"""What is served, by path: read once, less than a megabyte."""


def is_page(method: str, path: str) -> bool:
    """Whether a request is for one of the files, which need no key."""
    return method in ("GET", "HEAD") and (path or "/") in FILES


def add_pages(app: Starlette) -> None:
    """Add a route for each file; Starlette adds HEAD to every GET."""
    for where, file in FILES.items():
        app.add_route(where, _shown(file), methods=["GET"], include_in_schema=False)


def _shown(file: File) -> Callable[[Request], Awaitable[Response]]:
    headers = SAFE | {"ETag": file.tag}

    async def show(request: Request) -> Response:
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.kind)

    return show
