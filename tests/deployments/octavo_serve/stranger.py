"""Somebody else on this machine: tries every door of a server without its token, and prints what each one said.

    python stranger.py '{"uid": 65534, "ports": [...], "files": [...]}'

Run by hand against a server without Ray's token it reads and writes Ray's store, which is how code of a stranger's was
once run as the server's user.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import msgspec
from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest, InternalKVPutRequest

from octavo.request import Request, SamplingParams
from octavo_serve.wire.messages import Ask, Submit

KEY = {"namespace": b"octavo-test", "key": b"stranger"}
CALLS = {
    "/ray.rpc.InternalKVGcsService/InternalKVGet": InternalKVGetRequest(**KEY).SerializeToString(),
    "/ray.rpc.InternalKVGcsService/InternalKVPut": InternalKVPutRequest(**KEY, value=b"was here").SerializeToString(),
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo": b"",
    "/ray.rpc.NodeManagerService/GetNodeStats": b"",
    "/ray.rpc.ObjectManagerService/Pull": b"",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats": b"",
    "/ray.rpc.ReporterService/GetTraceback": b"",
    "/ray.serve.ASGIService/HandleRequest": b"",
}
"""What each of Ray's servers can do, and Serve's replicas, where the arguments are pickles."""

POSTS = {
    "/api/job_agent/jobs/": {"entrypoint": "touch /tmp/octavo-stranger"},
    "/get_or_create_runtime_env": {},
}


def call(port: int, method: str, request: bytes) -> str:
    """The status of a call without a token."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(request, timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def post(port: int, path: str, body: dict[str, Any]) -> int | None:
    """The status of an HTTP request; None where nobody speaks HTTP."""
    try:
        return httpx.post(f"http://127.0.0.1:{port}{path}", json=body, timeout=10, trust_env=False).status_code
    except httpx.HTTPError:
        return None


def submit(port: int) -> str:
    """What a shard's port answers to a request, first of all."""
    request = Request(request_id="stranger", prompt_token_ids=[1], params=SamplingParams(max_tokens=1))
    payload = msgspec.msgpack.encode(Submit(request))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(len(payload).to_bytes(4, "big") + payload)
        with contextlib.suppress(OSError):
            return connection.recv(1000).hex()
    return ""


def greet(port: int) -> str:
    """What a shard says to who plays its game without the secret, beside a nonce and its own proof."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection, contextlib.suppress(OSError):
        connection.sendall((32).to_bytes(4, "big") + bytes(32))
        if len(connection.recv(4 + 64)) == 4 + 64:  # it is a shard's port
            asked = msgspec.msgpack.encode(Ask(0.0, snapshot=True))
            connection.sendall((32).to_bytes(4, "big") + bytes(32) + len(asked).to_bytes(4, "big") + asked)
            return connection.recv(1000).hex() or "sent away"
    return ""


def readable(file: str) -> bool:
    """Whether a file, or a folder's names, can be read."""
    try:
        os.close(os.open(file, os.O_RDONLY))
    except OSError:
        return False
    return True


def every_call(port: int) -> dict[str, str]:
    """Each call's status; of one alone where nobody speaks gRPC."""
    found = {}
    for method, request in CALLS.items():
        found[method] = call(port, method, request)
        if found[method] in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            break
    return found


def every_post(port: int) -> dict[str, int | None]:
    """The same by HTTP."""
    found: dict[str, int | None] = {}
    for path, body in POSTS.items():
        found[path] = post(port, path, body)
        if found[path] is None:
            break
    return found


def main() -> None:
    told = json.loads(sys.argv[1])
    if "uid" in told:
        os.setgroups([])
        os.setresgid(told["uid"], told["uid"], told["uid"])
        os.setresuid(told["uid"], told["uid"], told["uid"])
    ports: list[int] = told["ports"]
    with ThreadPoolExecutor(len(ports)) as threads:  # who speaks neither answers neither, for ten seconds
        posts = dict(zip(ports, threads.map(every_post, ports), strict=True))
        calls = dict(zip(ports, threads.map(every_call, ports), strict=True))
    found = {
        "calls": calls,
        "posts": posts,
        "submits": {port: submit(port) for port in told.get("shards", [])},
        "greetings": [greet(port) for port in told.get("shards", [])],
        "readable": [file for file in told.get("files", []) if readable(file)],
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
