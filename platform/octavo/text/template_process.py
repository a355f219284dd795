"""Renders chat templates in a separate process, which can be killed at any point.

A template is an untrusted program from a model file. A thread cannot stop one that never ends or writes without end:
`{{ 'a' * 10**9 }}` is a single instruction. So the operating system does: the process gets CPU_SECONDS per template,
and MEMORY_BYTES beyond what it uses at its start. It is started when it is first needed (0.1 s), renders one template
after another, and ends with its parent process. A render costs 0.2 ms more than one in the parent.

The parent sends a request as a pickle. The answer comes back as plain text, because the process is not trusted.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from octavo.errors import BadRequest
from octavo.text.template import MAX_TEXT, compiled

CPU_SECONDS = 2.0
WALL_SECONDS = 60.0  # limit for a machine so busy that CPU_SECONDS are not reached
MEMORY_BYTES = 2**29
PROCESSES = 2
NICE = 10  # engines and event loops on this machine have precedence

_HEAD = struct.Struct("<?Q")  # whether a text follows (or the reason why there is none), and its bytes
_places = threading.BoundedSemaphore(PROCESSES)
_idle: list[_Process] = []


def render_apart(source: str, variables: Mapping[str, Any]) -> str:
    """Render the template `source` with `variables`; waits while all processes are busy.

    Raises:
        BadRequest: the template refuses them, cannot render them, or does not end in time and memory.
    """
    with _places:
        process = _idle_one() or _Process()
        try:
            rendered = process.render(source, variables)
        except (OSError, EOFError):
            process.close()
            raise BadRequest(
                f"the model's chat template was stopped: it needs more than {CPU_SECONDS:g} s of CPU time or "
                f"{MEMORY_BYTES >> 20} MiB for these messages",
                "messages",
            ) from None
        except BaseException:
            process.close()
            raise
        _idle.append(process)
    text, is_text = rendered
    if not is_text:
        raise BadRequest(text, "messages")
    return text


def _idle_one() -> _Process | None:
    while _idle:
        process = _idle.pop()
        if process.lives:
            return process
        process.close()
    return None


@atexit.register
def _close() -> None:
    while _idle:
        _idle.pop().close()


class _Process:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "octavo.text.template_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def render(self, source: str, variables: Mapping[str, Any]) -> tuple[str, bool]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(pickle.dumps((source, dict(variables))))
        stdin.flush()
        answer = select.poll()  # `select` takes no descriptor above 1,023
        answer.register(stdout, select.POLLIN)
        if not answer.poll(WALL_SECONDS * 1000):
            raise EOFError
        is_text, size = _HEAD.unpack(_exactly(stdout, _HEAD.size))
        return _exactly(stdout, min(size, 4 * MAX_TEXT)).decode("utf-8", "surrogatepass"), is_text

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError), self._process:  # what it has not read is lost with it
            pass


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


# ── in the process ──


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process it belongs to
    _limit_memory()
    while True:
        try:
            source, variables = pickle.load(requests)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process, whatever it is doing
        is_text, text = _rendered(source, variables)
        signal.setitimer(signal.ITIMER_PROF, 0)
        data = text.encode("utf-8", "surrogatepass")
        answers.write(_HEAD.pack(is_text, len(data)) + data)
        answers.flush()


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _rendered(source: str, variables: dict[str, Any]) -> tuple[bool, str]:
    try:
        return True, compiled(source).render(variables)
    except BadRequest as error:
        return False, error.message
    except MemoryError:
        os._exit(1)  # what it has taken would be missing next time


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
