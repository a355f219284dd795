"""Keeps what a gateway says of its models true: one background task per model and one question to Serve for all."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ray import serve

from octavo.source import Source, resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo_serve.api.model import NO_DEFAULTS, Defaults
from octavo_serve.api.registry import ModelEntry
from octavo_serve.wire.messages import ModelInfo

logger = logging.getLogger("ray.serve")

LOOK_SECONDS = 0.25
"""Between two looks at a model's shards, which cost no message."""
PERIOD = 1.0
"""Seconds between two questions to Serve are half of this at least."""
LAST_DELAY = 30.0
"""Seconds between later tries to load a tokenizer; the first ones come sooner."""

_ERROR = re.compile(r"^\s*(?:ray\S*|octavo\.errors\.\w+|\w+(?:\.\w+)*(?:Error|Exception)): .*$", re.MULTILINE)


class Shards(Protocol):
    """A model's shards."""

    async def describe(self) -> ModelInfo: ...

    def num_answering(self) -> int: ...

    @property
    def asleep(self) -> int: ...


async def load_text(
    entry: ModelEntry, source: str, defaults: Callable[[Source], Defaults] = lambda source: NO_DEFAULTS
) -> None:
    """Load a model's tokenizer, trying again until it is there: the files may come later, or the hub come back.

    Args:
        defaults: what the model's files say of requests that leave something open.
    """
    delay = 1.0
    while entry.tokenizer is None:
        try:
            tokenizer, found = await asyncio.to_thread(_text, source, defaults)
            entry.update(tokenizer=tokenizer, defaults=found, tokenizer_error="")
        except Exception as error:  # a damaged file makes a parser raise anything; only this model must suffer
            entry.update(tokenizer_error=str(error) or repr(error))
            logger.warning("%s: no tokenizer: %s; next try in %g s", entry.name, entry.tokenizer_error, delay)
            await asyncio.sleep(delay)
            delay = min(LAST_DELAY, 2 * delay)


def _text(source: str, defaults: Callable[[Source], Defaults]) -> tuple[Tokenizer, Defaults]:
    found = resolve_source(source)
    return load_tokenizer(found), defaults(found)


@dataclass(frozen=True, slots=True)
class State:
    """Serve's view of a deployment: running replicas, why it failed, what it waits for, all replicas by state."""

    running: int = 0
    error: str = ""
    note: str = ""
    replicas: Mapping[str, int] = field(default_factory=dict)


async def watch_shards(
    entry: ModelEntry, shards: Shards, state: Callable[[], Awaitable[State]], period: float = LOOK_SECONDS
) -> None:
    """Count the shards that answer, for ever; when none does, find out from Serve why."""
    while True:
        try:
            found = shards.num_answering()
            info = await shards.describe() if found else entry.info
            if shards.asleep:
                entry.update(shards=found, asleep=shards.asleep)
                await asyncio.sleep(period)
                continue
            seen = State() if found else await state()
            note = seen.note or ("its shards do not answer" if seen.running else "")
            entry.update(info=info, shards=found, shard_error=seen.error, note=note, asleep=0)
        except Exception as error:  # a shard died between two calls; the next look finds out
            entry.update(shards=0, note=f"its shards do not answer: {error}")
        await asyncio.sleep(period)


async def watch_room(entry: ModelEntry, look: Callable[[], str | None], period: float = 5 * PERIOD) -> None:
    """Ask, for ever, whether the cluster can hold the model's shards: Ray only waits until it can.

    Args:
        look: why it cannot; None when it can. May block.
    """
    while True:
        found = await asyncio.to_thread(look) or ""
        if found and found != entry.no_room:
            logger.warning("%s: %s", entry.name, found)
        entry.update(no_room=found)
        await asyncio.sleep(period)


class Deployments:
    """Serve's states of an application's deployments, asked for at most twice a second."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._asked = -1.0
        self._answer: asyncio.Task[dict[str, State]] | None = None

    async def state(self, deployment: str) -> State:
        return (await self.states()).get(deployment, State(note="its shards are about to be deployed"))

    async def states(self) -> Mapping[str, State]:
        """Of all deployments, by their names."""
        now = time.monotonic()
        if self._answer is None or now - self._asked > PERIOD / 2:
            self._asked = now
            self._answer = asyncio.create_task(asyncio.to_thread(deployment_states, self._app))
        return await asyncio.shield(self._answer)


def deployment_states(app: str) -> dict[str, State]:
    """Serve's view of an application, by deployment."""
    application = serve.status().applications.get(app)
    found = {}
    for name, deployment in application.deployments.items() if application else ():
        said = last_error(deployment.message)
        failed = deployment.status == "DEPLOY_FAILED"  # UNHEALTHY: a shard has died, and Serve is replacing it
        # Serve says its enumeration, whose members are texts, or the texts themselves
        replicas = {str.__str__(state): count for state, count in deployment.replica_states.items() if count}
        note = "" if failed else said or "its shards are starting"
        found[name] = State(replicas.get("RUNNING", 0), said if failed else "", note, replicas)
    return found


def last_error(message: str) -> str:
    """The sentence in a deployment's message: the last line of its traceback, without the stack above it."""
    errors = _ERROR.findall(message)
    return errors[-1].strip() if errors else message.strip()
