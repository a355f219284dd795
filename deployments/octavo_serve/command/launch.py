"""The child process of `octavo serve`: starts Ray, does what `serve run CONFIG` does, and reports progress and result.

It runs in a session of its own, so that the parent can end all of Ray's processes however this process ends. If the
parent is killed, this process ends them itself. Reports are JSON lines on a pipe: {"phase": ...} while it starts, then
one of {"running": Ray's address} or {"failed": reason}; {"say": ...} is for the user; {"drained": ...} answers SIGUSR1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from octavo.errors import ConfigError
from octavo_serve.command import joining
from octavo_serve.command.session import end_with_reader
from octavo_serve.ray_token import UNAUTHENTICATED

POLL_SECONDS = 0.1
BAD = "DEPLOY_FAILED", "UNHEALTHY"


def main() -> None:
    arguments = _arguments()
    os.set_inheritable(arguments.events_fd, False)
    brought: list[str] = []  # names of the applications added to somebody else's cluster
    end_with_reader(arguments.events_fd, arguments.config.parent, partial(joining.delete, brought))
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    report = Reporter(arguments.events_fd)
    report(phase="Starting Ray" if arguments.address is None else f"Connecting to Ray at {arguments.address}")
    if arguments.address is None:
        _serve(arguments, report)
    else:
        _join(arguments, report, brought)


def _serve(arguments: argparse.Namespace, report: Reporter) -> None:
    """Serve on a cluster of our own."""
    import ray
    from ray.serve import scripts

    from octavo_serve.ray_private import be_patient_with_proxies

    be_patient_with_proxies()
    ray.init(address="local", namespace="serve", include_dashboard=arguments.dashboard)
    _watch_in_thread(arguments, report)
    while True:
        try:
            scripts.run.main([str(arguments.config)], standalone_mode=False)
            break
        except ray.exceptions.RayActorError:  # Serve has replaced a proxy that was slow to start
            time.sleep(1)


def _join(arguments: argparse.Namespace, report: Reporter, brought: list[str]) -> None:
    """Serve on somebody else's cluster."""
    import ray
    import yaml

    from octavo_serve.ray_private import asks_who_we_are, use_token

    use_token()
    document = yaml.safe_load(arguments.config.read_text())
    ray.init(address=arguments.address, namespace="serve")
    if not asks_who_we_are(ray.get_runtime_context().gcs_address):
        report(say=UNAUTHENTICATED)
    try:
        joining.refuse_what_is_in_the_way(document)
        brought += arguments.apps
        joining.deploy(document)
        _watch_in_thread(arguments, report)
        while True:
            time.sleep(10)
    except ConfigError as error:
        report(failed=str(error))
    finally:
        joining.delete(brought)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--apps", nargs="+", required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--address")
    parser.add_argument("--dashboard", action="store_true")
    return parser.parse_args()


class Reporter:
    """Writes a report to the parent if it differs from the last one."""

    def __init__(self, fd: int) -> None:
        self._pipe = os.fdopen(fd, "w", buffering=1)
        self._last: dict[str, Any] | None = None

    def __call__(self, **report: Any) -> None:
        if report != self._last:
            self._pipe.write(json.dumps(report) + "\n")
            self._last = report


def _leave(signum: int, frame: FrameType | None) -> None:
    # Ray's exit handler ends its processes; draining through HAProxy would take 30 s
    sys.exit(0)


def _watch_in_thread(arguments: argparse.Namespace, report: Reporter) -> None:
    report(phase="Starting Serve")

    def drain() -> None:
        asyncio.run(_drain(report, arguments.apps))

    signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=drain, daemon=True).start())
    threading.Thread(target=_watch, args=(report, arguments.apps), daemon=True).start()


def _watch(report: Reporter, apps: list[str]) -> None:
    """Poll the applications until all can be asked or one has failed."""
    import ray
    from ray import serve

    while True:
        time.sleep(POLL_SECONDS)
        try:
            status = serve.status().applications
        except Exception:  # Serve is not up yet
            continue
        known = {name: status[name] for name in apps if name in status}
        if failed := [_failure(name, app) for name, app in known.items() if app.status in BAD and not _answers(app)]:
            report(failed="\n".join(failed))
            return
        if len(known) == len(apps) and all(map(_answers, known.values())):
            report(running=for_drivers(ray.get_runtime_context().gcs_address))
            return
        report(phase="Starting the gateway" if any(app.deployments for app in known.values()) else "Building")


def for_drivers(address: str) -> str:
    """The RAY_ADDRESS with which drivers on this machine find a cluster that listens only on loopback.

    Ray (2.60) replaces 127.0.0.1 in RAY_ADDRESS by this machine's network address; other spellings of loopback are
    kept.
    """
    host, _, port = address.rpartition(":")
    loopback = "[::ffff:127.0.0.1]" if Path("/proc/net/if_inet6").exists() else "0.0.0.0"
    return f"{loopback}:{port}" if host == "127.0.0.1" else address


def _answers(app: Any) -> bool:
    """Whether requests can reach an application. Our gateway then reports the state of its models itself."""
    gateway = app.deployments.get("gateway")
    return app.status == "RUNNING" or (gateway is not None and gateway.status == "HEALTHY")


def _failure(name: str, app: Any) -> str:
    from octavo_serve.gateway.watch import last_error

    details = [last_error(found.message) for found in app.deployments.values() if found.status in BAD]
    return "\n".join(dict.fromkeys(details)) or f"{name}: {last_error(app.message)}"


async def _drain(report: Reporter, apps: list[str]) -> None:
    """Make the gateways refuse new requests, and report once none runs any more."""
    from ray import serve

    handles = [serve.get_app_handle(app) for app in apps]  # with Serve's throughput settings they need a loop
    while sum([await _running(handle) for handle in handles]):
        await asyncio.sleep(POLL_SECONDS)
    report(drained=True)


async def _running(handle: Any) -> int:
    """How many requests an application's gateways still run; 0 for applications that are not ours."""
    try:
        answers = await handle.broadcast("drain").results_async(timeout_s=5, return_exceptions=True)
    except Exception:  # no answer in time
        return 1
    return sum(answer for answer in answers if isinstance(answer, int))


if __name__ == "__main__":
    main()
