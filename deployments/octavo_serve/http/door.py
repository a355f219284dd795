"""The door: checks every HTTP request before the API sees it, by method, path and headers alone.

    Host      names this machine, where only it can reach the server: a web page whose name was pointed here does not
    CORS      web pages of the origins in the settings may read answers, errors too; a preflight needs no key
    key       `Authorization: Bearer KEY` or `x-api-key: KEY`; for everything but /health and pages
    content   a web page says that its body is JSON: a form or a plain text needs no preflight, so any page can send one

Plain ASGI: see docs/access.md for what it costs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo_serve.api.access import Access, Caller, Rules
from octavo_serve.api.failures import Failure
from octavo_serve.api.surface import Errors
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.api.tenants import Tenant
from octavo_serve.http.pages import is_page
from octavo_serve.http.replies import CACHED, REASON, SHARD, failure_reply
from octavo_serve.ports import is_loopback

logger = logging.getLogger("ray.serve")

CALLER = "octavo.caller"
"""Key in the ASGI scope for the `Caller`; absent if /health or a page is requested without a key."""
BELOW = "octavo.below"
"""Key in the ASGI scope of a request that is below all others; absent of those from outside."""

OPEN_PATH = "/health"
LONGEST_HOST = 260
"""Most bytes of a `Host` header: a name has at most 253."""
_LEFT = [f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")]
EXPOSED = ["retry-after", "retry-after-ms", "www-authenticate", "x-request-id", *_LEFT]
_KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})
_LOOKED_AT = _KEY_HEADERS | {b"host", b"origin", b"sec-fetch-site", b"content-type", b"access-control-request-method"}
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{0,5})?")


@dataclass(slots=True)
class Head:
    """The headers that the door reads."""

    hosts: list[bytes]
    keys: list[bytes]
    repeated: bool = False  # more than one Authorization, or more than one x-api-key
    origin: bytes | None = None
    fetched: bool = False  # sent by a browser
    content_type: bytes = b""
    preflight: bool = False

    @classmethod
    def of(cls, scope: Scope) -> Head:
        head = cls([], [])
        seen = set[bytes]()
        for name, value in scope["headers"]:
            if name not in _LOOKED_AT:
                continue
            if name == b"host":
                head.hosts.append(value)
            elif name in _KEY_HEADERS:
                head.repeated |= name in seen
                seen.add(name)
                if (key := _key(name, value)) is not None:
                    head.keys.append(key)
            elif name == b"origin":
                head.origin, head.fetched = value, True
            elif name == b"sec-fetch-site":
                head.fetched = True
            elif name == b"content-type":
                head.content_type = value
            elif name == b"access-control-request-method":
                head.preflight = scope.get("method") == "OPTIONS"
        head.preflight &= head.origin is not None
        return head


def _key(name: bytes, value: bytes) -> bytes | None:
    if name == b"x-api-key":
        return value.strip()
    scheme, _, key = value.strip().partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None


class Door:
    """The outermost ASGI middleware, so that error responses from inside pass through it too."""

    def __init__(
        self, app: ASGIApp, access: Access, telemetry: Telemetry, errors_of: Callable[[Scope], Errors]
    ) -> None:
        self._app = app
        self._errors_of = errors_of
        self._access = access
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:  # the API has no websockets
                await send({"type": "websocket.close", "code": 1008, "reason": "there are no websockets here"})
            return
        rules, head = self._access.rules, Head.of(scope)
        if (refused := wrong_host(rules, head) or refused_preflight(rules, head)) is not None:
            await self._refuse(refused, scope, receive, send)
        elif rules.origins and head.origin is not None:
            await _cors(rules, _Inside(self, rules, head))(scope, receive, send)
        else:
            await self.enter(rules, head, scope, receive, send)

    async def enter(self, rules: Rules, head: Head, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks for requests other than preflights."""
        caller = caller_of(rules, head)
        path = path_of(scope)
        is_open = path == OPEN_PATH or is_page(scope["method"], path)
        refused = no_key(head) if caller is None and not is_open else None
        if (refused := refused or wrong_content(head, scope["method"])) is not None:
            await self._refuse(refused, scope, receive, send)
            return
        if caller is not None:
            scope[CALLER] = caller
            if caller.tenant.limited and scope["method"] == "POST":
                send = self._telling(caller.tenant, scope, send)
            if rules.keys is not None:
                self._telemetry.by_key[caller.name] += 1
                logger.info("%s %.200r by the key %s", scope["method"], scope["path"], caller.name)
        await self._app(scope, receive, send)

    def _telling(self, tenant: Tenant, scope: Scope, send: Send) -> Send:
        """As `send`; headers then say what is left of the tenant's quotas."""

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                left = self._errors_of(scope).limits(self._telemetry.ledger.quotas.standing(tenant))
                named = [(name.encode(), value.encode()) for name, value in left.items()]
                message = {**message, "headers": [*message["headers"], *named]}
            await send(message)

        return telling

    async def _refuse(self, refused: Failure, scope: Scope, receive: Receive, send: Send) -> None:
        self._telemetry.failed(refused.status, refused.code)
        await failure_reply(refused, self._errors_of(scope))(scope, receive, send)


@dataclass(frozen=True, slots=True)
class _Inside:
    """Everything inside the door as an ASGI application, for Starlette's CORS middleware."""

    door: Door
    rules: Rules
    head: Head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.door.enter(self.rules, self.head, scope, receive, send)


def _cors(rules: Rules, app: ASGIApp) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=rules.origins,
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=["*"],
        allow_private_network=True,  # a web page from the Internet that calls a server in the local network
        expose_headers=[*EXPOSED, *((SHARD, REASON, CACHED) if rules.disclose else ())],
    )


def path_of(scope: Scope) -> str:
    """A request's path as the API's routes see it: without the application's prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def caller_of(rules: Rules, head: Head) -> Caller | None:
    """The caller; None if the key is missing or not valid."""
    if rules.keys is None:
        return Caller()
    if head.repeated:
        return None
    return next((found for key in head.keys if (found := rules.keys.holder(key)) is not None), None)


def no_key(head: Head) -> Failure:
    """A 401 that says what is wrong with the key."""
    if head.repeated:
        message = "more than one key was sent in one header: send one"
    elif head.keys:
        message = "the API key is not one of this server's"
    else:
        message = "an API key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
    return Failure(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def wrong_host(rules: Rules, head: Head) -> Failure | None:
    """A 403 for a `Host` that is not this server's: DNS rebinding, by which a web page reaches a loopback server."""
    if rules.hosts is None or not head.hosts:
        return None
    one = len(head.hosts) == 1 and len(head.hosts[0]) <= LONGEST_HOST
    name = host_name(head.hosts[0]) if one else None
    if name is not None and (is_loopback(name) or name in rules.hosts):
        return None
    message = "the Host header does not name this server: use localhost, or add the name to allowed_hosts in the config"
    return Failure(403, message, "host_not_allowed")


@lru_cache(maxsize=256)
def host_name(value: bytes) -> str | None:
    """The name or address in a `Host` header, in lower case; None if it is not valid."""
    found = _HOST.fullmatch(value.decode("latin-1").lower())
    return (found[1] or found[2].removesuffix(".")) if found else None


def refused_preflight(rules: Rules, head: Head) -> Failure | None:
    """A 403 for a browser's request from a page of an origin that is not allowed."""
    if not head.preflight or "*" in rules.origins or (head.origin or b"").decode("latin-1") in rules.origins:
        return None
    return Failure(
        403, "web pages of this origin may not use this API: add it to cors_origins in the config", "origin_not_allowed"
    )


def wrong_content(head: Head, method: str) -> Failure | None:
    """A 415 for a content type that a web page can send to any server without a preflight."""
    if method not in ("POST", "PUT", "PATCH", "DELETE") or not head.fetched:
        return None
    kind = head.content_type.partition(b";")[0].strip().lower()
    if kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json")):
        return None
    return Failure(415, "a request from a web page must say Content-Type: application/json", "content_type_not_json")
