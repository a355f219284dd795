"""Keeps what a gateway says of its models true: one background task per model and one question to Serve for all."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from ray import serve

from octavo.engine.stats import EngineStats
from octavo.source import resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo_serve.openai.model import ModelInfo
from octavo_serve.openai.registry import ModelEntry

logger = logging.getLogger("ray.serve")

PERIOD = 1.0
"""Seconds between two looks at a model's shards."""
LAST_DELAY = 30.0
"""Seconds between later tries to load a tokenizer; the first ones come sooner."""

_ERROR = re.compile(r"^\s*(?:ray\S*|octavo\.errors\.\w+|\w+(?:\.\w+)*(?:Error|Exception)): .*$", re.MULTILINE)


class Shards(Protocol):
    """A model's shards."""

    async def describe(self) -> ModelInfo: ...

    async def stats(self) -> list[tuple[str, EngineStats]]: ...


async def load_text(entry: ModelEntry, source: str) -> None:
    """Load a model's tokenizer, trying again until it is there: the files may come later, or the hub come back."""
    delay = 1.0
    while entry.tokenizer is None:
        try:
            entry.tokenizer = await asyncio.to_thread(_tokenizer, source)
            entry.tokenizer_error = ""
        except Exception as error:  # whatever a damaged file makes a parser raise: this model's trouble alone
            entry.tokenizer_error = str(error) or repr(error)
            logger.warning("%s: no tokenizer: %s; next try in %g s", entry.name, entry.tokenizer_error, delay)
            entry.changed()
            await asyncio.sleep(delay)
            delay = min(LAST_DELAY, 2 * delay)
    entry.changed()


def _tokenizer(source: str) -> Tokenizer:
    return load_tokenizer(resolve_source(source))


async def watch_shards(
    entry: ModelEntry, shards: Shards, state: Callable[[], Awaitable[tuple[str, str]]], period: float = PERIOD
) -> None:
    """Count the shards that answer, for ever; when none does, ask Serve why.

    Args:
        state: Serve's view: (why it failed, what it is waiting for), either may be "".
    """
    while True:
        try:
            found = await shards.stats()
            if found and entry.info is None:
                entry.info = await shards.describe()
            entry.shards = len(found)
            entry.shard_error, entry.note = ("", "") if found else await state()
        except Exception as error:  # a shard that dies between two calls; the next look tells
            entry.shards, entry.note = 0, f"its shards do not answer: {error}"
        entry.changed()
        await asyncio.sleep(period)


class Deployments:
    """Serve's states of an application's deployments, asked for at most twice a second."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._asked = -1.0
        self._answer: asyncio.Task[dict[str, tuple[str, str]]] | None = None

    async def state(self, deployment: str) -> tuple[str, str]:
        """(why it failed, what it is waiting for) of one deployment."""
        now = time.monotonic()
        if self._answer is None or now - self._asked > PERIOD / 2:
            self._asked = now
            self._answer = asyncio.create_task(asyncio.to_thread(deployment_states, self._app))
        return (await asyncio.shield(self._answer)).get(deployment, ("", "its shards are about to be deployed"))


def deployment_states(app: str) -> dict[str, tuple[str, str]]:
    """Deployment -> (why it failed, what it is waiting for)."""
    application = serve.status().applications.get(app)
    found = {}
    for name, deployment in application.deployments.items() if application else ():
        said = last_error(deployment.message)
        failed = deployment.status in ("DEPLOY_FAILED", "UNHEALTHY")
        found[name] = (said, "") if failed else ("", said or "its shards are starting")
    return found


def last_error(message: str) -> str:
    """The sentence in a deployment's message: the last line of its traceback, without the stack above it."""
    errors = _ERROR.findall(message)
    return errors[-1].strip() if errors else message.strip()
