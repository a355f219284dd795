from __future__ import annotations

import os
import subprocess
import sys
from concurrent import futures

import grpc
import pytest

from octavo_serve.ray_private import asks_who_we_are


@pytest.mark.parametrize(("code", "asks"), [(None, False), (grpc.StatusCode.UNAUTHENTICATED, True)])
def test_whether_a_cluster_asks_for_a_token(code: grpc.StatusCode | None, asks: bool) -> None:
    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        if code is not None:
            context.abort(code, "who are you?")
        return b""

    handler = grpc.method_handlers_generic_handler(
        "ray.rpc.InternalKVGcsService", {"InternalKVExists": grpc.unary_unary_rpc_method_handler(answer)}
    )
    server = grpc.server(futures.ThreadPoolExecutor(1), [handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert asks_who_we_are(f"127.0.0.1:{port}") is asks
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(("mode", "is_open"), [("disabled", True), ("token", False)])
def test_a_process_of_an_open_cluster_knows_it(mode: str, is_open: bool) -> None:
    """Ray gives its own mode to every process that it starts."""
    command = [sys.executable, "-c", "from octavo_serve.ray_private import process_is_open as o; raise SystemExit(o())"]
    assert subprocess.run(command, env=os.environ | {"RAY_AUTH_MODE": mode}, check=False).returncode == is_open
