"""Queries to a server outside the measurement: its model, how it counts tokens, its number of replicas."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
import time
from dataclasses import replace
from typing import Any

from octavo_loadtest.client import Answer, Client, address
from octavo_loadtest.errors import LoadTestError, Refused
from octavo_loadtest.job import Session, Target
from octavo_loadtest.sender import encode
from octavo_loadtest.text import Calibration, passage

NOT_YET = (404, 408, 425, 429)  # statuses of a server that may answer later, as those from 500 on
SHORT, LONG = 16, 144  # words of the two prompts that show how tokens are counted


def find_model(url: str, headers: dict[str, str]) -> str:
    """The first model that /v1/models lists.

    Raises:
        LoadTestError: the server does not answer, or lists none.
    """
    answer = asyncio.run(_get(url, headers, "/v1/models"))
    try:
        return str(json.loads(answer.body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise LoadTestError(f"{url}/v1/models names no model (HTTP {answer.status}); pass --model") from None


def taken(url: str) -> bool:
    """Whether anything listens at a server's address."""
    there = address(url)
    try:
        socket.create_connection((there.host, there.port), LOOK).close()
    except OSError:
        return False
    return True


async def _get(url: str, headers: dict[str, str], path: str, timeout: float = 60.0) -> Answer:
    client = Client(address(url), headers)
    try:
        return await client.fetch("GET", path, timeout=timeout)
    finally:
        client.close()


def prepare(target: Target) -> tuple[Target, Calibration]:
    """Find out with three short requests which optional fields the server accepts and how it counts tokens.

    The fields that make answers long enough (`ignore_eos`) and count tokens per chunk (`continuous_usage_stats`) are
    not in OpenAI's API: a server that refuses them gets requests without them.

    Raises:
        Refused: the server refuses a plain request too, and will; the message has its answer.
        LoadTestError: it does not answer, or not yet.
    """
    return asyncio.run(_prepare(target))


async def _prepare(target: Target) -> tuple[Target, Calibration]:
    streaming: dict[str, Any] = {"include_usage": True}
    wishes: list[dict[str, Any]] = (
        [{}]
        if target.api == "embeddings"
        else [
            {"ignore_eos": True, "stream_options": {**streaming, "continuous_usage_stats": True}},
            {"ignore_eos": True, "stream_options": streaming},
            {"stream_options": streaming},
            {},
        ]
    )
    client = Client(address(target.url), target.headers)
    salt = secrets.token_hex(8)
    try:
        for wish in wishes:
            wished = replace(target, body={**wish, **target.body})
            if (answer := await _ask(client, wished, salt, SHORT)).status != 400 and answer.status != 422:
                break
        if answer.status != 200:
            kind = LoadTestError if answer.status in NOT_YET or answer.status >= 500 else Refused
            raise kind(f"{target.url} answers {answer.status}: {answer.body[:300].decode(errors='replace')}")
        few = await _count(client, wished, salt + "a", SHORT)
        many = await _count(client, wished, salt + "b", LONG)
    finally:
        client.close()
    if few is None or many is None or many <= few:
        return wished, Calibration()
    per_word = (many - few) / (LONG - SHORT)
    return wished, Calibration(per_word, few - SHORT * per_word, measured=True)


async def _ask(client: Client, target: Target, salt: str, words: int) -> Answer:
    body = json.loads(encode(target, [{"role": "user", "content": passage(salt, "calibrate", words)}], 1))
    return await client.fetch("POST", target.path, json.dumps(body).encode(), target.timeout)


async def _count(client: Client, target: Target, salt: str, words: int) -> int | None:
    whole = {} if target.api == "embeddings" else {"stream": False}
    body = {key: value for key, value in target.body.items() if key != "stream_options"} | whole
    answer = await _ask(client, replace(target, body=body), salt, words)
    try:
        return int(json.loads(answer.body)["usage"]["prompt_tokens"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def warm_up(target: Target, sessions: list[Session]) -> int:
    """Send the first turn of these sessions all at once and wait; returns how many were answered."""

    async def run() -> int:
        client = Client(address(target.url), target.headers)
        bodies = [
            encode(target, [{"role": "user", "content": s.turns[0].text}], s.turns[0].output_tokens) for s in sessions
        ]
        tasks = [client.fetch("POST", target.path, body, target.timeout) for body in bodies]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        client.close()
        return sum(isinstance(answer, Answer) and answer.status == 200 for answer in answers)

    return asyncio.run(run())


EVERY = 1.0  # s between looks at /health
LOOK = 2.0  # s until a look at /health is given up
LOOKS = 3  # that fail, before the first that does not, until the server is held to have no such page


class ReplicaWatch:
    """Reads the number of replicas from /health once a second, if the server reports it (`{"shards": {MODEL: n}}`).

    A look that fails is kept as None: from then to the next look nobody knows. The last look is when the watch ends.
    """

    def __init__(self, target: Target, origin: int) -> None:
        self.seen: list[tuple[float, int | None]] = []  # (s since the start of the run, replicas)
        self._target = target
        self._origin = origin
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> list[tuple[float, int | None]]:
        """End the watch; returns what was seen, nothing where the server has no such page."""
        self._stop.set()
        self._thread.join(timeout=2 * LOOK)
        return [] if self._absent() else list(self.seen)

    def _watch(self) -> None:
        ended = False
        while not ended and not (len(self.seen) >= LOOKS and self._absent()):
            ended = self._stop.wait(EVERY if self.seen else 0.0)
            count = self._count()
            self.seen.append(((time.perf_counter_ns() - self._origin) / 1e9, count))

    def _absent(self) -> bool:
        return all(count is None for _, count in self.seen)

    def _count(self) -> int | None:
        try:
            answer = asyncio.run(_get(self._target.url, self._target.headers, "/health", LOOK))
            shards = json.loads(answer.body)["shards"]
            return int(shards[self._target.model] if self._target.model in shards else sum(shards.values()))
        except (LoadTestError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None
