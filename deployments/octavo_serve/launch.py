"""The child process of `octavo serve`: starts Ray, does what `serve run CONFIG` does, and reports what becomes of it.

It runs in a session of its own, so that the parent can end all of Ray's processes however this one ends. Reports are
JSON lines on a pipe: {"phase": ...} while it starts, then one of {"running": Ray's address} or {"failed": reason}.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

POLL_SECONDS = 0.1
BAD = "DEPLOY_FAILED", "UNHEALTHY"


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    report = Reporter(arguments.events_fd)
    report(phase="Starting Ray" if arguments.address is None else f"Connecting to Ray at {arguments.address}")
    import ray
    from ray.serve import scripts
    from ray.serve._private import api

    # not the 60 s that a busy machine exceeds: `octavo serve --timeout` ends the wait
    api.HTTP_PROXY_TIMEOUT = 3600  # type: ignore[attr-defined]
    local = {} if arguments.address else {"include_dashboard": arguments.dashboard}
    ray.init(address=arguments.address or "local", namespace="serve", **local)
    report(phase="Starting Serve")
    threading.Thread(target=_watch, args=(report, arguments.apps), daemon=True).start()
    try:
        while True:
            try:
                scripts.run.main([str(arguments.config)], standalone_mode=False)
                break
            except ray.exceptions.RayActorError:  # Serve has given up a proxy that is slow to start, for another one
                time.sleep(1)
    finally:
        if arguments.address:  # the cluster stays; what this command brought does not
            _delete(arguments.apps)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--apps", nargs="+", required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--address")
    parser.add_argument("--dashboard", action="store_true")
    return parser.parse_args()


class Reporter:
    """Writes reports to the parent, each change once."""

    def __init__(self, fd: int) -> None:
        self._pipe = os.fdopen(fd, "w", buffering=1)
        self._last: dict[str, Any] | None = None

    def __call__(self, **report: Any) -> None:
        if report != self._last:
            self._pipe.write(json.dumps(report) + "\n")
            self._last = report


def _leave(signum: int, frame: FrameType | None) -> None:
    # Ray's own exit handler ends its processes; a drain through HAProxy would take 30 s
    sys.exit(0)


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
            report(running=ray.get_runtime_context().gcs_address)
            return
        report(phase="Starting the gateway" if any(app.deployments for app in known.values()) else "Building")


def _answers(app: Any) -> bool:
    """Whether an application's entrance is up: ours then says itself how its models are."""
    gateway = app.deployments.get("gateway")
    return app.status == "RUNNING" or (gateway is not None and gateway.status == "HEALTHY")


def _failure(name: str, app: Any) -> str:
    from octavo_serve.watch import last_error

    details = [last_error(found.message) for found in app.deployments.values() if found.status in BAD]
    return "\n".join(dict.fromkeys(details)) or f"{name}: {last_error(app.message)}"


def _delete(apps: list[str]) -> None:
    from ray import serve

    for app in apps:
        serve.delete(app, _blocking=False)


if __name__ == "__main__":
    main()
