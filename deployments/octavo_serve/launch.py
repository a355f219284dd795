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


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    report = Reporter(arguments.events_fd)
    report(phase="Starting Ray" if arguments.address is None else f"Connecting to Ray at {arguments.address}")
    import ray
    from ray.serve import scripts

    local = {} if arguments.address else {"include_dashboard": arguments.dashboard}
    ray.init(address=arguments.address or "local", namespace="serve", **local)
    report(phase="Starting Serve")
    threading.Thread(target=_watch, args=(report, arguments.apps), daemon=True).start()
    try:
        scripts.run.main([str(arguments.config)], standalone_mode=False)
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
    """Poll the applications until all run or one has failed."""
    import ray
    from ray import serve

    while True:
        time.sleep(POLL_SECONDS)
        try:
            status = serve.status().applications
        except Exception:  # Serve is not up yet
            continue
        known = {name: status[name] for name in apps if name in status}
        for name, app in known.items():
            if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                details = [d.message for d in app.deployments.values() if d.status in ("DEPLOY_FAILED", "UNHEALTHY")]
                report(failed=f"{name}: {app.message}", details=details)
                return
        if len(known) == len(apps) and all(app.status == "RUNNING" for app in known.values()):
            report(running=ray.get_runtime_context().gcs_address)
            return
        waiting = [
            deployment
            for app in known.values()
            for deployment, found in app.deployments.items()
            if found.status != "HEALTHY"
        ]
        report(phase=f"Starting {', '.join(waiting)}" if waiting else "Building the application")


def _delete(apps: list[str]) -> None:
    from ray import serve

    for app in apps:
        serve.delete(app, _blocking=False)


if __name__ == "__main__":
    main()
