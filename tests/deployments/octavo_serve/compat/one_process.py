"""The API and its engines in one process, without Ray: starts in two seconds, for work on the clients' scripts.

    python tests/deployments/octavo_serve/compat/one_process.py --port 8000 [--record FOLDER]
    python tests/deployments/octavo_serve/compat/run.py --port 8000

`make compat` starts the whole server. With --record, the bodies that clients send are written down, one file each.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
import yaml

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.request import Request, SequenceUpdate
from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer
from octavo_serve.api.access import Access
from octavo_serve.api.bounds import Limits
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import ShardStats, Telemetry
from octavo_serve.http.app import http_app
from octavo_serve.wire.messages import ModelInfo

HERE = Path(__file__).parent


class Local:
    """`ModelClient` and `Backend` over an engine of this process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def describe(self) -> ModelInfo:
        limits, block_size = self._engine.engine.limits, self._engine.engine.config.block_size
        return ModelInfo(limits.name, limits.max_model_len, limits.vocab_size, block_size, limits.tasks, limits.pooling)

    @contextmanager
    def admitted(self, key: Callable[[], bytes], sequences: int, tokens: int, claim: object = None) -> Iterator[None]:
        yield

    def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        return self._engine.generate(request)

    def placement(self, request_id: str) -> None:
        return None

    async def abort(self, request_id: str, index: int) -> None:
        self._engine.abort(request_id, index)

    async def shard_stats(self) -> ShardStats:
        return {}


def recorded(app: Any, folder: Path) -> Any:
    """An application that writes down the JSON bodies that it is sent."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count()

    async def recording(scope: Any, receive: Any, send: Any) -> None:
        body = bytearray()

        async def received() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            if body and not message.get("more_body"):
                headers = {name.decode(): value.decode() for name, value in scope["headers"]}
                agent = headers.get("user-agent", "")
                line = {"path": scope["path"], "agent": agent} | _told(bytes(body), headers)
                (folder / f"{next(numbers):04}.json").write_text(json.dumps(line, indent=1))
                body.clear()
            return message

        await app(scope, received, send)

    return recording


def _told(body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """A body as it is written down: JSON, and the bytes that may follow it."""
    length = headers.get("inference-header-content-length")
    if length is None:
        return {"body": json.loads(body)}
    return {"body": json.loads(body[: int(length)]), "bytes": body[int(length) :].decode("latin-1")}


def loaded(model: dict[str, Any]) -> Local:
    """An engine as scripted.yaml describes it."""
    settings = dict(model["engine"])
    if "rehearsal" in settings:
        settings["rehearsal"] = str(HERE / settings["rehearsal"])
    return Local(AsyncEngine.load(model["source"], EngineConfig(**settings)))


def entry(model: dict[str, Any], local: Local) -> ModelEntry:
    tokenizer, info = load_tokenizer(resolve_source(model["source"])), asyncio.run(local.describe())
    return ModelEntry(model["name"], int(time.time()), local, tokenizer=tokenizer, info=info, shards=1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--record", type=Path)
    chosen = options.parse_args()
    models = yaml.safe_load((HERE / "scripted.yaml").read_text())["applications"][0]["args"]["models"]
    engines = [loaded(model) for model in models]
    entries = [entry(model, engine) for model, engine in zip(models, engines, strict=True)]
    app: Any = http_app(Service(Registry(entries), Limits(), Telemetry()), engines[0], Access())
    uvicorn.run(recorded(app, chosen.record) if chosen.record else app, port=chosen.port, log_level="warning")


if __name__ == "__main__":
    main()
