"""A file's lines answered by a model in this process: the server's own way from a body to its answer, without Ray.

Answers are written as they come, so that `custom_id` tells which is which; whoever begins again goes on behind them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.errors import BadRequest
from octavo.request import Request, SequenceUpdate
from octavo.source import resolve_source
from octavo.text.recommended import recommended_sampling
from octavo.text.tokenizer import load_tokenizer
from octavo_serve.api.access import Caller
from octavo_serve.api.batches.nouns import Line
from octavo_serve.api.batches.reading import Read, body_of, endpoint_of, read
from octavo_serve.api.batches.runner import written
from octavo_serve.api.bounds import Limits
from octavo_serve.api.model import NO_CLAIM, Claim, Defaults
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import ShardStats, Telemetry
from octavo_serve.command.batch.command import Progress, errors_of
from octavo_serve.command.chat.command import model_of
from octavo_serve.http.app import App, http_app
from octavo_serve.http.inside import ask
from octavo_serve.surfaces.served import BATCHED
from octavo_serve.wire.messages import ModelInfo

MAX_LINE = 2**28
"""Bytes; the model's context says how many a body may have."""
SYNCED = 32
"""Answers after which the disk is waited for."""


class LocalModel:
    """A `ModelClient` of an engine in this process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def describe(self) -> ModelInfo:
        limits, block_size = self._engine.engine.limits, self._engine.engine.config.block_size
        return ModelInfo(limits.name, limits.max_model_len, limits.vocab_size, block_size, limits.tasks, limits.pooling)

    @contextmanager
    def admitted(
        self, key: Callable[[], bytes], sequences: int, tokens: int, claim: Claim = NO_CLAIM
    ) -> Iterator[None]:
        yield

    def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        return self._engine.generate(request)

    def placement(self, request_id: str) -> None:
        return None

    async def abort(self, request_id: str, index: int) -> None:
        self._engine.abort(request_id, index)

    async def courses(self, shard: str, request_id: str, block: bytes) -> None:
        """None: nobody asks."""

    def held(self) -> dict[str, frozenset[bytes]]:
        """None: there are no shards."""
        return {}

    async def shard_stats(self) -> ShardStats:
        """None: nobody asks for metrics."""
        return {}


async def answered(file: Path, output: Path, words: Sequence[str], progress: Progress) -> None:
    """Answer what is not answered yet.

    Raises:
        BadRequest: lines are wrong; ModelError, ConfigError: the model cannot be had; OSError: nor can a file.
    """
    endpoint = endpoint_of(file, MAX_LINE)
    found = await asyncio.to_thread(read, file, endpoint, MAX_LINE)
    _check(found, endpoint)
    with output.open("ab+") as done, errors_of(output).open("ab+") as failed:
        there = _known(done) | _known(failed)
        left = [line for line in found.lines if line.custom_id not in there]
        if there:
            progress.say(f"{len(there)} of {len(found.lines)} lines are there already")
        if left:
            await _Answering(file, endpoint, done, failed, progress, len(found.lines)).run(found.model, words, left)


def _check(found: Read, endpoint: str) -> None:
    if found.errors:
        said = [f"line {error['line']}: {error['message']}" for error in found.errors[:10]]
        raise BadRequest("\n".join(said))
    if endpoint not in BATCHED:
        raise BadRequest(f"url is {endpoint!r:.80}; a batch can be for {', '.join(sorted(BATCHED))}")


def _known(file: BinaryIO) -> set[str]:
    """Which lines are in a file; one that was cut is taken off."""
    known, end = set[str](), 0
    file.seek(0)
    for text in file:
        try:
            if not text.endswith(b"\n"):
                break
            known.add(msgspec.json.decode(text)["custom_id"])
        except (msgspec.DecodeError, KeyError, TypeError):
            raise BadRequest(f"{file.name} holds something else than answers: name another file") from None
        end += len(text)
    file.truncate(end)
    return known


class _Answering:
    """Lines on their way."""

    def __init__(
        self, file: Path, endpoint: str, done: BinaryIO, failed: BinaryIO, progress: Progress, total: int
    ) -> None:
        self._file, self._endpoint = file, endpoint
        self._done, self._failed = done, failed
        self._progress, self._total = progress, total
        self._well = self._wrong = 0

    async def run(self, name: str, words: Sequence[str], lines: list[Line]) -> None:
        """Load the model and answer lines: so many at once that its places are never free."""
        model = await asyncio.to_thread(model_of, words)
        config = EngineConfig(**model["engine"])
        with closing(await asyncio.to_thread(AsyncEngine.load, model["source"], config)) as engine:
            app = await _app(engine, name, model)
            places, waiting = min(2 * engine.engine.config.max_num_seqs, 1024), iter(lines)
            async with asyncio.TaskGroup() as group:
                for _ in range(places):
                    group.create_task(self._some(app, waiting))

    async def _some(self, app: App, waiting: Iterator[Line]) -> None:
        for line in waiting:
            body = body_of(self._file, line)
            reply = await ask(app.inside, Caller(), self._endpoint, body, below=False)
            well = 200 <= reply.status < 300
            self._well, self._wrong = self._well + well, self._wrong + (not well)
            self._write(self._done if well else self._failed, written(line.custom_id, reply))
            self._progress(self._well, self._wrong, self._total)

    def _write(self, file: BinaryIO, answer: bytes) -> None:
        file.write(answer + b"\n")
        file.flush()
        if not (self._well + self._wrong) % SYNCED:
            os.fsync(file.fileno())


async def _app(engine: AsyncEngine, name: str, model: dict[str, object]) -> App:
    local, source = LocalModel(engine), resolve_source(str(model["source"]))
    defaults = Defaults(sampling=recommended_sampling(source) | dict(model["defaults"] or {}))  # type: ignore[call-overload]
    entry = ModelEntry(
        name or str(model["source"]),
        int(time.time()),
        local,
        tokenizer=await asyncio.to_thread(load_tokenizer, source),
        info=await local.describe(),
        shards=1,
        defaults=defaults,
    )
    return http_app(Service(Registry([entry]), Limits(), Telemetry()), local)
