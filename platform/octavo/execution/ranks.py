"""One model over several processes: rank 0 runs in this one and tells the others each step.

The others connect to rank 0, load their share of the weights, and run every `StepBatch` that comes over the connection;
what they compute is joined by collectives inside the step, so nothing goes back but a pulse. Whoever is left when one
of them dies ends too: the connection and the collectives break.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, Protocol

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from octavo.config import EngineConfig
from octavo.errors import ConfigError, EngineDead, ModelError, OctavoError
from octavo.execution.executor import LocalExecutor, Wait
from octavo.execution.local import load_local
from octavo.execution.parallel import DistributedGroup
from octavo.models.spec import ModelSpec
from octavo.request import Adapter
from octavo.source import Source
from octavo.step import StepBatch
from octavo_kernels.native.cores import available_cores

PULSE = 0.5  # seconds between two signs of life of a rank
SILENT_AFTER = 10.0  # seconds without one after which a rank counts as hung; a busy machine may hold one up for some


@dataclass(frozen=True, slots=True)
class Invitation:
    """Where rank 0 waits for another, and how they know each other."""

    host: str
    port: int
    key: bytes
    rank: int


class Ranks(Protocol):
    """The processes of the ranks but 0, of whoever started them."""

    def ended(self) -> str | None:
        """Which of them has ended and how, in words; None while all live."""
        ...

    def stop(self) -> None:
        """End those that are left."""
        ...


@dataclass(frozen=True, slots=True)
class Launch:
    """How the other ranks are started.

    Attributes:
        start: starts a process for each invitation, that calls `serve_rank`.
        host: this machine as those processes see it.
    """

    start: Callable[[list[Invitation]], Ranks]
    host: str


@dataclass(frozen=True, slots=True)
class _Setup:
    """What every rank is told first."""

    source: Source
    config: EngineConfig
    store_port: int


class OtherRanks:
    """Rank 0's connections to the others, and their processes.

    Args:
        links: to the ranks 1, 2, ...
        processes: what runs them.
    """

    def __init__(self, links: list[Connection[Any, Any]], processes: Ranks) -> None:
        self.processes = processes
        self._links = links
        self._heard = [0.0] * len(links)
        self._loaded: dict[str, list[str]] = {}  # what each rank said of an adapter: nothing, or what is wrong
        self._sending = threading.Lock()  # adapters are loaded beside steps
        self._reading = threading.Lock()  # two readers of one link would each get a part of a message
        self.forgive()

    def __len__(self) -> int:
        return len(self._links)

    def send(self, message: object) -> None:
        """Tell every rank.

        Raises:
            EngineDead: one is gone.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        try:
            with self._sending:
                for link in self._links:
                    link.send_bytes(data)
        except OSError as error:
            self.listen()
            raise EngineDead(f"a rank is gone: {error}") from error

    def check_alive(self) -> None:
        """Raise EngineDead if one has ended, or what it failed with."""
        self.listen()
        if how := self.processes.ended():
            raise EngineDead(how)

    def check_pulse(self) -> None:
        """Raise EngineDead if one has given no sign of life for some seconds."""
        for rank, heard in enumerate(self._heard, 1):
            if (silent := time.monotonic() - heard) > SILENT_AFTER:
                raise EngineDead(f"rank {rank} has given no sign of life for {silent:.0f} s")

    def forgive(self) -> None:
        """Count their silence from now on."""
        self._heard = [time.monotonic()] * len(self._links)

    def listen(self) -> None:
        """Take in what the ranks have said; raises what one of them failed with."""
        with self._reading:
            for index, link in enumerate(self._links):
                try:
                    while link.poll():
                        said = link.recv()
                        if isinstance(said, Exception):
                            raise said
                        if said is not None:  # of an adapter: its digest, and what is wrong with it
                            self._loaded.setdefault(said[0], []).append(said[1])
                        self._heard[index] = time.monotonic()
                except (EOFError, ConnectionError) as error:
                    raise EngineDead(f"rank {index + 1} is gone") from error

    def load_adapter(self, adapter: Adapter) -> None:
        """Have every rank load an adapter, and wait until all have.

        Raises:
            ModelError: one cannot.
            EngineDead: one is gone.
        """
        self._loaded.pop(adapter.digest, None)
        self.send(adapter)
        while len(self._loaded.get(adapter.digest, ())) < len(self._links):
            time.sleep(0.002)
            self.check_alive()
        if errors := [error for error in self._loaded.pop(adapter.digest) if error]:
            raise ModelError(errors[0])

    def close(self) -> None:
        """Let them end."""
        with self._reading:
            for link in self._links:
                link.close()  # they take this as the end
            self._links = []
        self.processes.stop()


class ParallelExecutor:
    """Rank 0's executor, which tells the other ranks of each step.

    Args:
        own: of this rank's share.
        others: ready to run steps.
    """

    max_in_flight: int = 1
    kv = None
    local: LocalExecutor | None = None

    def __init__(self, own: LocalExecutor, others: OtherRanks) -> None:
        self.spec: ModelSpec = own.spec
        self.num_blocks, self.groups = own.num_blocks, own.groups
        self.batch_invariant, self.states = own.batch_invariant, own.states
        self.others = others
        self._own = own
        self._description = f"rank 0 of {len(others) + 1}: {own}"

    def __str__(self) -> str:
        return self._description

    def launch(self, batch: StepBatch) -> Wait:
        """Begin a step on all ranks.

        Raises:
            EngineDead: a rank is gone, or this one raised: the others may be in the middle of the step, and would take
                the next step's sums for this one's.
        """
        self.others.send(_for_others(batch))
        try:
            return self._own.launch(batch)
        except Exception as error:
            raise EngineDead(f"rank 0 failed in the middle of a step: {error!r}") from error

    def load_adapter(self, adapter: Adapter) -> int:
        """As in `Executor`; bytes on this rank."""
        size = self._own.load_adapter(adapter)
        try:
            self.others.load_adapter(adapter)
        except ModelError:
            self.drop_adapter(adapter.digest)
            raise
        return size

    def drop_adapter(self, digest: str) -> None:
        """As in `Executor`."""
        self.others.send(digest)
        self._own.drop_adapter(digest)

    def check_health(self) -> None:
        """Raise EngineDead if a rank has ended or given no sign of life for some seconds."""
        self.others.check_alive()
        self.others.check_pulse()

    def close(self) -> None:
        """End the other ranks, and drop this one's share."""
        self.others.close()
        self._own.close()


def load_parallel(
    source: Source, config: EngineConfig, launch: Launch | None = None, *, progress: bool = False
) -> ParallelExecutor:
    """Load a model into `config.tensor_parallel_size` ranks, of which this process is rank 0.

    Args:
        launch: starts the other ranks; None makes them children of this process.

    Raises:
        ModelError, ConfigError: the model cannot be loaded, or not by so many ranks.
        EngineDead: a rank ended before it was ready.
    """
    size = config.tensor_parallel_size
    config = dataclasses.replace(config, threads=config.threads or _fair_threads(size))
    launch = launch or Launch(partial(RankProcesses, device=config.device), "127.0.0.1")
    others = _start(launch, size)
    try:
        own = _load_own(source, config, launch.host, others, progress)
    except BaseException:
        others.close()
        raise
    others.forgive()
    return ParallelExecutor(own, others)


def _start(launch: Launch, size: int) -> OtherRanks:
    """Start the ranks 1, 2, ... and wait until all have connected."""
    key = secrets.token_bytes(32)
    with socket.create_server((launch.host, 0)) as server:
        port = server.getsockname()[1]
        processes = launch.start([Invitation(launch.host, port, key, rank) for rank in range(1, size)])
        try:
            return OtherRanks(_welcome(server, key, size, processes), processes)
        except BaseException:
            processes.stop()
            raise


def _load_own(source: Source, config: EngineConfig, host: str, others: OtherRanks, progress: bool) -> LocalExecutor:
    """Load this rank's share while the others load theirs."""
    size = config.tensor_parallel_size
    store = _store(host, size)
    others.send(_Setup(source, config, store.port))
    try:
        group = DistributedGroup(store, 0, size, config.device, host, others.check_alive)
        return load_local(source, config, progress=progress, group=group)
    except EngineDead:
        others.listen()  # a rank that failed has said why
        raise


def serve_rank(invitation: Invitation) -> None:
    """Be a rank: load a share of the model, run the steps that rank 0 sends, return when it leaves.

    Raises:
        OctavoError: what went wrong; rank 0 raises the same.
    """
    with socket.create_connection((invitation.host, invitation.port)) as sock:
        own_host = sock.getsockname()[0]
        link = _connection(sock)
    speaking = threading.Lock()  # the pulse must not come in the middle of what went wrong
    with link:
        answer_challenge(link, invitation.key)
        deliver_challenge(link, invitation.key)
        link.send(invitation.rank)
        try:
            _serve(link, invitation, own_host, speaking)
        except (EOFError, ConnectionError):
            return
        except Exception as error:
            said = error if isinstance(error, OctavoError) else EngineDead(f"rank {invitation.rank}: {error!r}")
            with contextlib.suppress(OSError), speaking:
                link.send(said)
            raise


def _serve(link: Connection[Any, Any], invitation: Invitation, own_host: str, speaking: threading.Lock) -> None:
    setup = link.recv()
    config: EngineConfig = setup.config
    size = config.tensor_parallel_size
    store = TCPStore(invitation.host, setup.store_port, size, is_master=False)
    group = DistributedGroup(store, invitation.rank, size, config.device, own_host)
    executor = load_local(setup.source, config, group=group)
    threading.Thread(target=_pulse, args=(link, speaking), daemon=True).start()
    loading = ThreadPoolExecutor(1, "octavo-adapters")
    while True:
        message = pickle.loads(link.recv_bytes())
        if isinstance(message, Adapter):
            loading.submit(_load_adapter, executor, message, link, speaking)
        elif isinstance(message, str):
            executor.drop_adapter(message)
        else:
            executor.launch(message)()


def _load_adapter(
    executor: LocalExecutor, adapter: Adapter, link: Connection[Any, Any], speaking: threading.Lock
) -> None:
    error = ""
    try:
        executor.load_adapter(adapter)
    except Exception as raised:
        error = str(raised)
    with contextlib.suppress(OSError), speaking:
        link.send((adapter.digest, error))


def _pulse(link: Connection[Any, Any], speaking: threading.Lock) -> None:
    """Tell rank 0 that this process runs, whatever step it is in."""
    with contextlib.suppress(OSError):
        while True:
            with speaking:
                link.send(None)
            time.sleep(PULSE)


def _welcome(server: socket.socket, key: bytes, size: int, ranks: Ranks) -> list[Connection[Any, Any]]:
    """Connections to the ranks 1, 2, ..., once all have come."""
    server.settimeout(0.1)
    links: dict[int, Connection[Any, Any]] = {}
    while len(links) < size - 1:
        try:
            link = _connection(server.accept()[0])
        except TimeoutError:
            if how := ranks.ended():
                raise EngineDead(f"{how} before it was ready") from None
            continue
        deliver_challenge(link, key)
        answer_challenge(link, key)
        links[link.recv()] = link
    return [links[rank] for rank in range(1, size)]


def _store(host: str, size: int) -> TCPStore:
    """A store that listens on this address alone: by itself it would listen on all of them."""
    listening = socket.create_server((host, 0))
    port = listening.getsockname()[1]
    return TCPStore(
        host, port, size, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach(), use_libuv=True
    )


def _connection(sock: socket.socket) -> Connection[Any, Any]:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(sock.detach())


def _for_others(batch: StepBatch) -> StepBatch:
    """Without what only the rank that draws the tokens needs: penalties and masks are long."""
    sampling = dataclasses.replace(
        batch.sampling, penalties={}, logit_bias={}, banned={}, named={}, masks=None, masked=None, beams={}
    )
    return dataclasses.replace(batch, sampling=sampling)


def _fair_threads(size: int) -> int:
    return max(1, available_cores() // size)


# ---- ranks without Ray ----------------------------------------------------------------------------------------------


class RankProcesses:
    """Ranks as child processes on this machine, each with a GPU of its own where the device is one.

    Not `multiprocessing`: its children import the caller's main module again.
    """

    def __init__(self, invitations: list[Invitation], device: str) -> None:
        gpus = _gpus(len(invitations) + 1, device)
        self._processes: list[subprocess.Popen[bytes]] = []
        for invitation in invitations:
            gpu = {"CUDA_VISIBLE_DEVICES": gpus[invitation.rank]} if gpus else {}
            self._processes.append(_start_process(invitation, gpu))

    def ended(self) -> str | None:
        """Which of them has ended and how, in words; None while all live."""
        for rank, process in enumerate(self._processes, 1):
            if (code := process.poll()) is not None:
                return f"rank {rank} has ended with exit code {code}"
        return None

    def stop(self) -> None:
        """End those that are left: they leave when their connection closes, or are killed."""
        for process in self._processes:
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start_process(invitation: Invitation, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo.execution.ranks"],
        env={**os.environ, **environment, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
    )
    assert process.stdin is not None
    with process.stdin as stdin:  # not in the arguments, which every user of the machine can read
        stdin.write(json.dumps({**dataclasses.asdict(invitation), "key": invitation.key.hex()}).encode())
    return process


def _gpus(size: int, device: str) -> list[str]:
    """A visible GPU for each rank; empty on a CPU, and where the device is one GPU that all ranks are to share."""
    if device == "cpu" or ":" in device or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",")
    if len(gpus) < size:
        raise ConfigError(f"tensor_parallel_size is {size}, but there are {len(gpus)} GPUs: one for each rank")
    return gpus


def _main() -> None:
    told = json.loads(sys.stdin.read())
    serve_rank(Invitation(**{**told, "key": bytes.fromhex(told["key"])}))


if __name__ == "__main__":
    _main()
