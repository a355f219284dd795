"""The front door with a real HAProxy: what Ray writes for it, and what becomes of that."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from octavo.errors import ConfigError
from octavo_serve.command.front import (
    NOT_FOR_CLIENTS,
    SERVES_OWN,
    behind,
    check_tls,
    haproxy_binary,
    haproxy_settings,
    middlewares,
    most_connections,
    trust,
    warning_without_keys,
)
from octavo_serve.http.askers import ADDRESS
from octavo_serve.ports import free_block, in_url

BINARY = haproxy_binary()
IPV6 = ["::1", "::"] if Path("/proc/net/if_inet6").exists() else []
needs_haproxy = pytest.mark.skipif(BINARY is None, reason="Ray brings HAProxy on Linux alone")


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        for told in self.headers.get_all(ADDRESS, []):
            self.send_header("told", told)
        self.end_headers()
        self.wfile.write(b"behind")

    def log_message(self, *_: object) -> None:
        pass


def written_by_ray(settings: dict[str, str], http: dict[str, Any], gateway: int) -> str:
    """HAProxy's configuration from Ray's own template."""
    from jinja2 import Environment
    from ray.serve._private import haproxy, haproxy_templates
    from ray.serve.config import HTTPOptions

    given = HTTPOptions(**{key: behind(http)[key] for key in ("host", "port")})
    config = haproxy.HAProxyConfig(
        http_options=given,
        socket_path=settings["RAY_SERVE_HAPROXY_SOCKET_PATH"],
        metrics_port=int(settings["RAY_SERVE_HAPROXY_METRICS_PORT"]),
        stats_port=int(settings["RAY_SERVE_HAPROXY_STATS_PORT"]),
        log_target=settings["RAY_SERVE_HAPROXY_LOG_TARGET"],
        enable_hap_optimization=False,
        metrics_enabled=False,
        is_head=True,
    )
    backend = haproxy.BackendConfig(
        name="octavo",
        path_prefix="/",
        servers=[haproxy.ServerConfig("gateway", "127.0.0.1", gateway)],
        app_name="octavo",
    )
    environment = Environment()
    environment.filters["haproxy_fmt"] = haproxy._haproxy_fmt_literal
    rendered: str = environment.from_string(haproxy_templates.HAPROXY_CONFIG_TEMPLATE).render(
        config=config,
        backends=[backend],
        grpc_backends=[],
        backends_with_health_config=[{"backend": backend, "health_config": backend.build_health_check_config(config)}],
        healthz_rules="",
        route_info={"status": 200, "routes_content_type": "text/plain", "routes_message": "none"},
        has_ingress_request_router=False,
    )
    return rendered


@contextmanager
def front(folder: Path, http: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """HAProxy as Ray starts it, before a gateway that answers everything."""
    assert BINARY is not None
    settings = haproxy_settings(BINARY, folder, http)
    with HTTPServer(("127.0.0.1", 0), Answer) as gateway:
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        file = folder / "haproxy.cfg"
        file.write_text(written_by_ray(settings, http, gateway.server_port) + "\n")
        command = [settings["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
            gateway.shutdown()


def get(url: str, verify: ssl.SSLContext | bool = True) -> str:
    for _ in range(300):
        try:
            return httpx.get(url, verify=verify, timeout=30, trust_env=False).text
        except httpx.ConnectError as error:
            if "CERTIFICATE" in str(error):
                raise
            threading.Event().wait(0.1)
    raise AssertionError(f"{url} does not answer")


@needs_haproxy
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", *IPV6])
def test_the_front_alone_listens_where_the_config_says(host: str, tmp_path: Path) -> None:
    http = {"host": host, "port": free_block(1)}
    reached = {"0.0.0.0": ["127.0.0.1"], "::": ["::1", "127.0.0.1"]}.get(host, [host])
    with front(tmp_path, http):
        for address in reached:
            assert get(f"http://{in_url(address, http['port'])}/anything") == "behind"
        lines = re.findall(r"^ *bind (.*)$", (tmp_path / "haproxy.cfg").read_text(), re.MULTILINE)
    both = " v4v6" if host == "::" else ""
    sockets = [f"unix@{tmp_path}/haproxy-{name}.sock mode 600" for name in ("metrics", "stats")]
    assert lines == [sockets[0], in_url(host, http["port"]) + both, sockets[1]]


@needs_haproxy
def test_what_serve_would_answer_without_a_key_is_not_for_clients(tmp_path: Path) -> None:
    """Ray's HAProxy says the applications' names at /-/routes, to pages of any name too: no gateway looks at them."""
    http = {"host": "127.0.0.1", "port": free_block(1)}
    url = f"http://127.0.0.1:{http['port']}"
    with front(tmp_path, http):
        assert get(f"{url}/-/other") == "behind"
        for path in ("/-/routes", "/-/healthz", "/-/routes?x=1", "/%2d/routes", "/-/ROUTES"):
            answer = httpx.get(url + path, timeout=30, trust_env=False)
            assert (answer.status_code, answer.json()) == (404, NOT_FOR_CLIENTS), path


@needs_haproxy
def test_a_gateway_is_told_the_address_whatever_the_client_says(tmp_path: Path) -> None:
    http = {"host": "127.0.0.1", "port": free_block(1)}
    url = f"http://127.0.0.1:{http['port']}/"
    with front(tmp_path, http):
        get(url)
        made_up = [(ADDRESS, "192.0.2.1"), (ADDRESS.upper(), "192.0.2.2")]
        answer = httpx.get(url, headers=made_up, timeout=30, trust_env=False)
    assert answer.headers.get_list("told") == ["127.0.0.1"]


@pytest.mark.parametrize(("fronted", "passes"), [("1", {"/-/healthz", "/x"}), ("0", {"/x"})])
def test_behind_the_front_and_without_one_neither(
    fronted: str, passes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", fronted)
    (middleware,) = middlewares()
    app = middleware.cls(PlainTextResponse("serve"), *middleware.args, **middleware.kwargs)

    async def passing(root: str) -> set[str]:
        transport = httpx.ASGITransport(app, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://x{root}") as client:
            return {path for path in (*SERVES_OWN, "/x") if (await client.get(path)).text == "serve"}

    assert asyncio.run(passing("")) == asyncio.run(passing("/below")) == passes


@needs_haproxy
def test_tls_ends_at_the_front(tmp_path: Path, certificate: dict[str, str]) -> None:
    http = {"host": "127.0.0.1", "port": free_block(1), **certificate}
    url = f"https://127.0.0.1:{http['port']}/"
    with front(tmp_path, http):
        assert get(url, trust(certificate["ssl_certfile"])) == "behind"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            get(url)
    assert (tmp_path / "front.pem").stat().st_mode & 0o077 == 0
    assert not [key for key in behind(http) if key.startswith("ssl_")]


@needs_haproxy
def test_headers_must_come_in_time_and_more_are_let_in_than_a_gateway_holds(tmp_path: Path) -> None:
    http = {"host": "127.0.0.1", "port": free_block(1)}
    settings = haproxy_settings(str(BINARY), tmp_path, http)
    assert int(settings["RAY_SERVE_HAPROXY_MAXCONN"]) == most_connections() >= 1024
    with front(tmp_path, http):
        get(f"http://127.0.0.1:{http['port']}")
        lines = (tmp_path / "haproxy.cfg").read_text().splitlines()
    assert lines[lines.index("defaults") + 1].strip() == "timeout http-request 10s"


@needs_haproxy
def test_a_line_that_nobody_asked_for_is_not_opened(tmp_path: Path) -> None:
    """Another version of Ray may write another file: then there is no server, and not an open one."""
    with front(tmp_path, {"host": "127.0.0.1", "port": free_block(1)}) as process:
        process.kill()
        process.wait()
        file = tmp_path / "haproxy.cfg"
        file.write_text(file.read_text() + f"listen more\n  bind *:{free_block(1)}\n")
        done = subprocess.run([str(tmp_path / "haproxy"), "-db", "-f", str(file)], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "would listen where nobody asked for it" in done.stderr


def test_a_certificate_is_tried_before_anything_starts(tmp_path: Path, certificate: dict[str, str]) -> None:
    check_tls({})
    check_tls(certificate)
    (tmp_path / "other.pem").write_text("nothing")
    for wrong, sentence in (
        ({"ssl_certfile": str(tmp_path / "other.pem")}, "cannot be used for TLS"),
        ({"ssl_keyfile": certificate["ssl_certfile"]}, "cannot be used for TLS"),
        ({"ssl_keyfile_password": "x"}, "ssl_keyfile_password is not supported"),
        ({"ssl_ca_certs": certificate["ssl_certfile"]}, "ssl_ca_certs is not supported"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            check_tls(certificate | wrong)


def test_an_open_server_without_keys_is_said() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.0.1"):
        assert warning_without_keys(host, 8000, keys=False) is None
    for host in ("0.0.0.0", "::", "192.0.2.1", "llm.example.com"):
        assert "no api_keys" in (warning_without_keys(host, 8000, keys=False) or "")
        assert warning_without_keys(host, 8000, keys=True) is None
