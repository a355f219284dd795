"""`octavo serve CONFIG`: starts the server in a child process, shows progress, waits for a real answer, and ends it.

The child (`command.launch`) leads a session of its own. Every Ray process that it starts stays in that session, so
ending the session ends exactly these, and no other Ray process.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import queue
import re
import shlex
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TextIO
from urllib.parse import quote

import httpx
import yaml
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.text import Text

from octavo.errors import ConfigError
from octavo_serve.command.from_model import as_yaml, fetch
from octavo_serve.command.front import (
    MIDDLEWARES,
    behind,
    check_tls,
    haproxy_binary,
    haproxy_settings,
    trust,
    warning_without_keys,
)
from octavo_serve.command.json_lines import console as console_of
from octavo_serve.command.plain_text import clean
from octavo_serve.command.ready import ReadyShards
from octavo_serve.command.session import end_session, session_members
from octavo_serve.config.config_file import Awaited, Plan, check_files, make_plan, read_plan
from octavo_serve.ports import free_block, why_not
from octavo_serve.ray_token import MODE, keep_token, token_file

QUESTION = "What is the capital of France?"
__all__ = ["Options", "end_session", "environment", "free_block", "run", "session_members"]

END_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_PROGRESS = re.compile(r"(?:Loading|Packing) .*?:\s+(\d+)%\|")


class StartError(Exception):
    """The server cannot be started, or it has ended; the message says why."""


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or a closed terminal.

    Attributes:
        drains: whether running streams may end first. After a closed terminal they may not: a service manager sends
            SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        self.drains = signum == signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Options:
    """The command's options; see `octavo serve --help`.

    Attributes:
        config: the file; what messages call the model where there is none.
        document: the config, where it was made from a model's name and flags.
        log_format: "text" or "json", of this command's lines and of Serve's logs; None: as the config says.
    """

    config: Path
    port: int | None = None
    host: str | None = None
    timeout: float = 1800
    grace: float = 20
    address: str | None = None
    fast: bool = True
    dashboard: bool = False
    verbose: bool = False
    document: dict[str, Any] | None = None
    log_format: str | None = None

    def plan(self) -> Plan:
        """The config, read and checked.

        Raises:
            ConfigError: it is not valid.
        """
        if self.document is None:
            plan = read_plan(self.config, self.port, self.host)
        else:
            plan = make_plan(copy.deepcopy(self.document), self.config, self.port, self.host)
        if self.log_format is not None:
            logging_config = plan.document.get("logging_config") or {}
            plan.document["logging_config"] = logging_config | {"encoding": self.log_format.upper()}
        return plan


def run(options: Options, only_print: bool = False) -> int:
    """Serve until interrupted.

    Args:
        only_print: check and print the config, and serve nothing.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM if every model had answered; 1 if one had not (the others were served)
        or none could be served; 2 for a bad config; 130 after Ctrl-C before anything was served.
    """
    console = console_of(options.log_format == "json" and not only_print)
    try:
        plan = options.plan()
        if plan.logs_json and not only_print:
            console = console_of(True)
        if options.address is None:  # otherwise the files are on the cluster's nodes
            check_files(plan)
        check_tls(plan.http)
        if only_print:
            print_config(options, console)
            return 0
        if options.document is not None:
            if not plan.logs_json:
                print_config(options, console, style="dim")
            fetch(options.document, partial(_say, console))
        if options.address is None:
            keep_token(os.environ)
    except ConfigError as error:
        console.print(f"[bold red]{escape(str(options.config))}[/]: {escape(clean(str(error)))}", soft_wrap=True)
        return 2
    for note in notes(options, plan):
        console.print(note, markup=False, soft_wrap=True)
    code = 130
    try:
        with _signals_raise():
            if options.address is None and (taken := why_not(plan.host, plan.port)):
                raise StartError(f"{taken}: stop what listens there or pass --port")
            with _server(options, plan, console) as server:
                say = partial(_say, console)
                with console.status("Starting") as status:
                    show = partial(_show, status) if console.is_terminal else _Printer(say)
                    ray = wait_until_running(server, show, say)
                    failed = await_answers(plan, server, show, say)
                code = 1 if failed else 0
                _announce(console, plan, ray, failed, time.monotonic() - server.started)
                _serve_until_told(server, options.grace, console)
    except Interrupted:
        _say(console, "Stopped")
        return code
    except StartError as error:
        console.print("[bold red]Not serving:[/]", end=" ")
        console.print(clean(str(error)), markup=False, soft_wrap=True)
    return 1


def print_config(options: Options, console: Console, style: str | None = None) -> None:
    """Print the config file, or the one that a model's name and flags stand for."""
    text = options.config.read_text() if options.document is None else as_yaml(options.document)
    console.print(text.rstrip(), style=style, markup=False, soft_wrap=True)


def notes(options: Options, plan: Plan) -> list[str]:
    """Warnings and notes for the user before the start."""
    found = []
    if options.address is None and (elsewhere := os.environ.get("RAY_ADDRESS")):
        found.append(f"RAY_ADDRESS={elsewhere} is not followed, a cluster of its own is started: --address joins one.")
    if options.address is None and (mode := os.environ.get(MODE, "token")) != "token":
        found.append(f"{MODE}={mode} is set: every user of this machine can run code as you while this runs.")
    folder = Path(os.environ.get("RAY_TMPDIR") or "/nowhere")
    if options.address is None and folder.is_dir() and folder.stat().st_mode & 0o077:
        found.append(f"RAY_TMPDIR={folder} is open to other users, who can run code as you there: chmod 700 it.")
    guarded = all(settings.api_keys for settings in plan.settings)
    if warning := warning_without_keys(plan.host, plan.port, guarded):
        found.append(warning)
    return found


def _serve_until_told(server: Server, grace: float, console: Console) -> None:
    try:
        server.process.wait()
        server.check()
    except Interrupted as interrupted:
        if interrupted.drains and grace:
            console.print(f"No more requests are taken; those that run have {grace:g} s to end.")
            server.drain(grace)
        raise


def _say(console: Console, line: str) -> None:
    """Print a line, if anybody is left to read it: the log must be read on and the server ended (rich would exit).

    What stands in it, such as a model's name or a file's own words, is neither markup nor an escape sequence.
    """
    with contextlib.suppress(OSError, SystemExit):
        console.print(clean(line), markup=False, soft_wrap=True)


# ---- the child --------------------------------------------------------------------------------------------------


class Server:
    """The child process, its reports and the end of its log."""

    def __init__(
        self,
        process: subprocess.Popen[str],
        reports: TextIO,
        timeout: float,
        console: Console,
        verbose: bool,
        shards: Mapping[str, int],
    ) -> None:
        self.process = process
        self.started = time.monotonic()
        self.loading = ""  # a shard's progress in loading its model
        self._deadline = self.started + timeout
        self._timeout = timeout
        self._console, self._verbose = console, verbose
        self.ready = ReadyShards(shards, partial(_say, console))
        self._tail: deque[str] = deque(maxlen=30)
        self._reports: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        for target, stream in ((self._read_log, process.stdout), (self._read_reports, reports)):
            threading.Thread(target=target, args=(stream,), daemon=True).start()

    @property
    def late(self) -> bool:
        """Whether the time to start is over."""
        return time.monotonic() > self._deadline

    def report(self, wait: float) -> dict[str, Any]:
        """The child's next report, or an empty one if there is none within `wait` seconds.

        Raises:
            StartError: it has ended, or the time to start is over.
        """
        with contextlib.suppress(queue.Empty):
            return self._reports.get(timeout=wait)
        self.check()
        if self.late:
            raise StartError(f"no answer after {self._timeout:g} s; --timeout gives it longer\n{self.log()}")
        return {}

    def drain(self, grace: float) -> None:
        """Make the gateways refuse new requests, and wait until none runs, at most `seconds`."""
        self.process.send_signal(signal.SIGUSR1)
        over = time.monotonic() + grace
        while (rest := over - time.monotonic()) > 0 and self.process.poll() is None:
            with contextlib.suppress(queue.Empty):
                if "drained" in self._reports.get(timeout=min(rest, 0.5)):
                    time.sleep(min(rest, 0.5))  # so that answers already sent get through HAProxy
                    return

    def check(self) -> None:
        """Raise `StartError` if the child has ended."""
        if (code := self.process.poll()) is not None:
            raise StartError(f"the server ended with exit code {code}\n{self.log()}")

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
                _say(self._console, line.rstrip())
            else:
                self.ready.read(line.rstrip())

    def _read_reports(self, stream: TextIO) -> None:
        for line in stream:
            self._reports.put(json.loads(line))


@contextlib.contextmanager
def _server(options: Options, plan: Plan, console: Console) -> Iterator[Server]:
    """Start the child. When the block is left, every process that it started has ended."""
    with tempfile.TemporaryDirectory(prefix="octavo-", dir=place_for_sockets()) as folder:
        env = environment(options, plan, Path(folder))
        fronted = options.address is None and env.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
        http = behind(plan.http) if fronted else plan.http
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(plan.document | {"http_options": dict(http)}))
        ours, theirs = os.pipe()
        command = [sys.executable, "-m", "octavo_serve.command.launch", str(config), "--events-fd", str(theirs)]
        command += ["--apps", *plan.apps]
        command += ["--address", options.address] if options.address else []
        command += ["--dashboard"] if options.dashboard else []
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[theirs],
            start_new_session=True,
        )
        os.close(theirs)
        server = Server(process, os.fdopen(ours), options.timeout, console, options.verbose, plan.first_shards)
        try:
            yield server
        except Interrupted:
            _say(console, "Stopping")
            raise
        finally:
            server.ready.close()
            end_session(process)


def place_for_sockets() -> str:
    """The parent of the server's folder: TMPDIR or similar, or /tmp if paths of Unix sockets below it would be too
    long.

    A socket's path has at most 107 bytes. 96 of them follow: the folder, a node's id, and HAProxy's
    `admin.sock.PID.tmp`.
    """
    place = tempfile.gettempdir()
    return place if len(os.fsencode(place)) <= 107 - 96 else "/tmp"


def environment(options: Options, plan: Plan, folder: Path) -> dict[str, str]:
    """The child's environment: Ray reads these when its first process starts, so they cannot be set later.

    Variables that the user has set are kept. On a cluster that is already running, only the cluster's own settings
    count.
    """
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    # Ray runs workers at nice 15, because they may be batch work; ours serve interactive requests
    settings["RAY_worker_niceness"] = "0"
    settings["OCTAVO_HOST"] = plan.host  # the address clients use: behind HAProxy, Serve listens on another one
    settings["OMP_WAIT_POLICY"] = "passive"  # torch's threads must not spin on cores that the gateway needs
    if options.address is None:
        settings[MODE] = "token"  # without it every user of the machine could run code as this one
        if (token := token_file(os.environ)) is not None:
            settings["RAY_AUTH_TOKEN_PATH"] = str(token)  # Ray itself finds no token if HOME is not set
        # Ray's own switch for single-node clusters: everything listens on 127.0.0.1
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Ray's folder holds code that its processes run, and their sockets; by default everybody can write there
        settings["RAY_TMPDIR"] = str(folder)
        settings["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = MIDDLEWARES
        settings["RAY_preload_python_modules"] = (
            "octavo_serve.shard.shard"  # imported when a worker starts, before a shard needs it: see `warm`
        )
        # Serve replaces a proxy that has not started after 5 s, and kills one, with all its connections, that has not
        # answered within 10 s three times in a row: both happen on a busy machine
        settings |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
        # a killed HAProxy is replaced after three failed checks in a row: 30 s with Ray's ten between them
        settings["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] = "0.25"
        # Serve's controller runs its loop ten times a second, which is a third of an idle cluster's CPU time, and each
        # time interrupts a model that computes on all cores. A slower loop was not seen to delay the start of shards.
        # With autoscaling it stays fast, because the controller decides the number of shards.
        if not plan.scales:
            settings["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"] = "0.25"
    if options.address is None and options.fast:
        # a prompt with its log probabilities is larger than gRPC's 4 MiB
        settings |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
        settings["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"] = str(256 * 2**20)
        if (binary := haproxy_binary()) is not None:
            settings |= haproxy_settings(binary, folder, plan.http)
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS" or options.address}
    return settings | kept


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Raise `Interrupted` on each of these signals, except on SIGHUP under nohup."""
    came: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        if signum != signal.SIGTERM or len(came) > 1:  # only the drain after a first SIGTERM can be interrupted
            for each in END_SIGNALS:
                signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signum)

    wanted = [each for each in END_SIGNALS if signal.getsignal(each) is not signal.SIG_IGN or each != signal.SIGHUP]
    before = {each: signal.signal(each, interrupt) for each in wanted}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


# ---- until it answers -------------------------------------------------------------------------------------------


def wait_until_running(server: Server, show: Callable[[str], None], say: Callable[[str], None]) -> str:
    """Show the child's phases until the gateway is up; returns the Ray cluster's address.

    Raises:
        StartError: it cannot be deployed, the child ended, or it took too long.
    """
    while True:
        report = server.report(wait=0.2)
        if "failed" in report:
            raise StartError(report["failed"])
        if "running" in report:
            return str(report["running"])
        if "phase" in report:
            show(report["phase"])
        if "say" in report:
            say(report["say"])


def await_answers(
    plan: Plan, server: Server, show: Callable[[str], None], say: Callable[[str], None]
) -> dict[str, str]:
    """Wait until every model has answered a test request or has failed, in any order.

    Args:
        show: called with what is being waited for.
        say: called with what has happened.

    Returns:
        A sentence for each model that does not answer, including those still loading when the time is over.

    Raises:
        StartError: no model answers, or the child ended.
    """
    answered: set[str] = set()
    failed: dict[str, str] = {}
    while len(answered) + len(failed) < len(plan.models):
        loading: dict[str, str] = {}
        states = _states(plan)
        for awaited in plan.awaited:
            model, state = awaited.label, states.get(awaited.label)
            if state is None or model in answered or model in failed:
                continue
            if state["status"] == "loading":
                loading[model] = state["reason"]
                continue
            try:
                reason = state["reason"] or _ask(plan, awaited)
            except _LOST as error:  # HAProxy is being replaced: the model has not been asked
                loading[model] = f"its address does not answer: {error}"
                continue
            if reason:
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
        raise StartError("\n".join(f"{model}: {reason}" for model, reason in failed.items()))
    return failed


def _states(plan: Plan) -> dict[str, dict[str, Any]]:
    """The gateways' reports on their models, by label; empty until Serve's proxies know the gateways."""
    said = {route: _health(plan, route) for route in {awaited.route for awaited in plan.awaited}}
    found = [(awaited.label, said[awaited.route].get(awaited.model)) for awaited in plan.awaited]
    return {label: state for label, state in found if state is not None}


def _health(plan: Plan, route: str) -> dict[str, dict[str, Any]]:
    try:
        answer = httpx.get(
            f"{plan.base}{route}/health", headers=plan.headers, timeout=60, trust_env=False, verify=_trust(plan)
        )
        states: dict[str, dict[str, Any]] = answer.json()["models"]
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise StartError(f"clients will refuse {plan.http['ssl_certfile']}: {error}") from None
        return {}
    except (ValueError, KeyError, TypeError):
        return {}
    return states


def _trust(plan: Plan) -> ssl.SSLContext | bool:
    certificate = plan.http.get("ssl_certfile")
    return trust(certificate) if certificate else True


_LOST = httpx.NetworkError, httpx.RemoteProtocolError
_POOLING = "/pooling"  # of models without text, whatever they do
_FEW: dict[str, Any] = {"max_tokens": 4, "temperature": 0}


def _ask(plan: Plan, awaited: Awaited) -> str | None:
    """Request a few tokens, or a vector; returns what is wrong with the answer, or None.

    Raises:
        NetworkError, RemoteProtocolError: there was no connection, or it ended before an answer.
    """
    path, body = _POOLING, {"model": awaited.model, "input": QUESTION}
    if _writes(plan, awaited):
        path, body = "/v1/completions", {"model": awaited.model, "prompt": QUESTION, **_FEW}
    url = f"{plan.base}{awaited.route}{path}"
    try:
        answer = httpx.post(url, json=body, headers=plan.headers, timeout=600, trust_env=False, verify=_trust(plan))
    except httpx.TimeoutException as error:
        return f"it does not answer: {error}"
    return None if answer.status_code == 200 else f"it answers {answer.status_code}: {answer.text}"


def _writes(plan: Plan, awaited: Awaited) -> bool:
    """Whether a model writes text; assumed where it does not say."""
    url = f"{plan.base}{awaited.route}/v1/models/{quote(awaited.model)}"
    try:
        answer = httpx.get(url, headers=plan.headers, timeout=60, trust_env=False, verify=_trust(plan))
        tasks = answer.json()["tasks"]
    except (httpx.TransportError, ValueError, KeyError, TypeError):
        return True
    return tasks is None or "generate" in tasks


def _show(status: Status, text: str) -> None:
    status.update(Text(clean(text)))


class _Printer:
    """Shows progress without a terminal: one line per phase."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = ""

    def __call__(self, text: str) -> None:
        phase = text.partition(":")[0]
        if phase != self._last:
            self._say(phase)
            self._last = phase


def _announce(console: Console, plan: Plan, ray: str, failed: dict[str, str], seconds: float) -> None:
    served = [awaited for awaited in plan.awaited if awaited.label not in failed]
    shown = next((awaited for awaited in served if _writes(plan, awaited)), None)
    path, question = _POOLING, dict[str, Any](model=served[0].model, input=QUESTION)
    if shown is not None:
        chat = [{"role": "user", "content": QUESTION}]
        path, question = "/v1/chat/completions", {"model": shown.model, "messages": chat, "temperature": 0}
    for model, reason in failed.items():
        console.print(f"[bold red]Not serving[/] {escape(clean(model))}:", end=" ")
        console.print(clean(reason), markup=False, soft_wrap=True)
    console.print(
        f"\n[bold green]Serving[/] {escape(clean(', '.join(awaited.label for awaited in served)))} "
        f"at [bold]{plan.url}/v1[/] after {seconds:.1f} s."
    )
    key = "" if plan.key is None else '-H "Authorization: Bearer $KEY" '  # not the key: this may be a log
    console.print("Ask it something:\n")
    trusted = f"--cacert {plan.http['ssl_certfile']} " if plan.http.get("ssl_certfile") else ""
    url = f"{plan.base}{(shown or served[0]).route}{path}"
    console.print(
        f"  curl {trusted}{url} {key}-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(question))}",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"\nRay jobs find it with {MODE}=token RAY_ADDRESS={ray} (examples/batch_job.py). Ctrl-C stops it.\n",
        markup=False,
        soft_wrap=True,
    )
