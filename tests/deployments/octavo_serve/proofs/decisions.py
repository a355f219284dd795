"""Decisions on a running server: the same bits at any load, and the time beside chats that ask the same.

    python tests/deployments/octavo_serve/proofs/decisions.py configs/quickstart.yaml

Every round has a state of its own, so that nothing of an earlier one is in the cache. A chat call has the prompt that a
question has, and asks for one token with its log probability.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Awaitable
from typing import Any

import httpx
from running import RunningServer, parser

from octavo_serve.surfaces.decisions.labels import YES_NO, Labels
from octavo_serve.surfaces.decisions.questions import Question

WORDS = [
    "order",
    "payment",
    "refund",
    "support",
    "invoice",
    "ticket",
    "delivery",
    "answer",
    "customer",
    "charge",
    "week",
    "money",
    "late",
    "again",
]
ALONE = 2
"""Chat calls that are measured where each computes its state."""


def state_of(tokens: int, rng: random.Random) -> str:
    """A text of about so many tokens."""
    return " ".join(rng.choice(WORDS) for _ in range(tokens)) + "."


def questions_of(count: int) -> list[dict[str, Any]]:
    return [{"type": "predicate", "instructions": f"The text says {WORDS[i % 14]} number {i}."} for i in range(count)]


class Client:
    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http = http
        self._model = model

    async def decide(self, state: str, questions: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        body = {"model": self._model, "input": state, "questions": questions, **fields}
        return await self._answer("/v1/decisions", body)

    async def _answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What a request is answered, which is sent again where there was no room for it."""
        while (answer := await self._http.post(path, json=body)).status_code == 429:
            await asyncio.sleep(float(answer.headers["retry-after"]))
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    async def chat(self, state: str, question: dict[str, Any], max_tokens: int = 1) -> None:
        asked = Question("predicate", "questions", question["instructions"])
        labels = Labels(YES_NO, ())
        content = f"{state}\n\n{asked.head(labels)}{asked.text(labels)}"
        body = {"model": self._model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
        await self._answer("/v1/chat/completions", {**body, "logprobs": True, "top_logprobs": 5})

    async def talk(self, stop: asyncio.Event, rng: random.Random) -> None:
        """One stream after the other."""
        while not stop.is_set():
            await self.chat(state_of(rng.randint(10, 200), rng), {"instructions": "Why?"}, rng.randint(1, 40))


async def timed(work: Awaitable[Any]) -> tuple[float, Any]:
    begin = time.monotonic()
    result = await work
    return time.monotonic() - begin, result


async def same_bits(client: Client, options: argparse.Namespace, rng: random.Random) -> bool:
    """Whether answers are the same bits in all these cases."""
    state, questions = state_of(options.tokens // 4, rng), questions_of(options.questions)
    first = (await client.decide(state, questions))["answers"]
    same = []

    def compare(name: str, answers: list[Any]) -> None:
        same.append(answers == first[: len(answers)])
        print(f"{name:60} {'the same bits' if same[-1] else 'OTHER BITS'}", flush=True)

    fresh = {"prompt_cache_options": {"mode": "explicit"}}
    compare("again, from the cache", (await client.decide(state, questions))["answers"])
    compare("with nothing of the cache", (await client.decide(state, questions, **fresh))["answers"])
    compare("in another order", (await client.decide(state, questions[::-1]))["answers"][::-1])
    compare("the first three alone", [(await client.decide(state, [q]))["answers"][0] for q in questions[:3]])
    stop = asyncio.Event()
    streams = [asyncio.create_task(client.talk(stop, random.Random(i))) for i in range(options.streams)]
    await asyncio.sleep(1)
    beside = f"beside {options.streams} streams"
    compare(beside, (await client.decide(state, questions))["answers"])
    compare(f"{beside}, with nothing of the cache", (await client.decide(state, questions, **fresh))["answers"])
    stop.set()
    await asyncio.gather(*streams)
    return all(same)


async def times(client: Client, options: argparse.Namespace, rng: random.Random) -> None:
    """The seconds of one decision, and of as many chat calls as it has questions."""
    questions = questions_of(options.questions)
    for _ in range(options.rounds):
        state = state_of(options.tokens, rng)
        seconds, told = await timed(client.decide(state, questions))
        say(f"\n{len(questions)} questions, {told['usage']['input_tokens']} tokens", seconds, seconds)
        say("the same again, from the cache", (await timed(client.decide(state, questions)))[0], seconds)
        for name in options.chats:
            say(
                name,
                await CHATS[name](client, [state_of(options.tokens, rng) for _ in range(ALONE)], questions),
                seconds,
            )


async def in_turn(client: Client, states: list[str], questions: list[dict[str, Any]]) -> float:
    """Seconds of chat calls about one state, one after the other: all but the first find it in the cache."""

    async def work() -> None:
        for question in questions:
            await client.chat(states[0], question)

    return (await timed(work()))[0]


async def together(client: Client, states: list[str], questions: list[dict[str, Any]]) -> float:
    """Seconds of chat calls about one state that are sent at once."""
    return (await timed(asyncio.gather(*(client.chat(states[0], question) for question in questions))))[0]


async def alone(client: Client, states: list[str], questions: list[dict[str, Any]]) -> float:
    """Seconds of chat calls that find nothing in the cache, of which as many are measured as there are states."""

    async def work() -> None:
        for state, question in zip(states, questions, strict=False):
            await client.chat(state, question)

    return (await timed(work()))[0] * len(questions) / len(states)


CHATS = {"in turn": in_turn, "together": together, "alone": alone}


def say(name: str, seconds: float, decision: float) -> None:
    print(f"{name:60} {seconds:8.2f} s {seconds / decision:8.2f}x", flush=True)


async def prove(server: RunningServer, options: argparse.Namespace) -> bool:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:
        client, rng = Client(http, server.model), random.Random(options.seed)
        same = not options.bits or await same_bits(client, options, rng)
        await times(client, options, rng)
    return same


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--questions", type=int, default=100)
    options.add_argument("--tokens", type=int, default=4000, help="of the state, about")
    options.add_argument("--streams", type=int, default=64, help="that run beside the decision")
    options.add_argument("--rounds", type=int, default=1, help="of the measurement")
    options.add_argument("--chats", nargs="*", choices=CHATS, default=list(CHATS), help="which chats to measure")
    options.add_argument("--no-bits", dest="bits", action="store_false", help="measure alone")
    asked = options.parse_args()
    with RunningServer(asked.config, asked.port) as server:
        same = asyncio.run(prove(server, asked))
    sys.exit(0 if same else "probabilities depend on the load")


if __name__ == "__main__":
    main()
