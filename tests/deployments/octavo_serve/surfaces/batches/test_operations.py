"""Batches as OpenAI's client uses them: begun, looked at, answered in files, cancelled."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from hashlib import sha256
from typing import Any

import openai
import pytest

from octavo.errors import Overloaded
from octavo.request import BELOW_ALL
from octavo_serve.api.access import Caller, Keys, KnownKey, Rules
from octavo_serve.api.batches import work
from octavo_serve.api.batches.nouns import Asking
from octavo_serve.api.batches.runner import Reply, Runner
from octavo_serve.api.usage import Usage

HOUR = 3600


def test_a_batch_is_answered_in_a_file_with_its_custom_ids(batching: Any, line: Any, client: Any) -> None:
    async def run() -> None:
        async with batching.client() as api, batching.working():
            begun = await batching.begun(api, *[line(f"q{n}") for n in range(9)], metadata={"for": "test"})
            assert (begun.status, begun.metadata) == ("validating", {"for": "test"})
            batch = await batching.ended(api, begun.id)
            assert (batch.status, batch.model, batch.error_file_id) == ("completed", "tiny", None)
            assert (batch.request_counts.total, batch.request_counts.completed) == (9, 9)
            assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
            lines = await batching.lines_of(api, batch.output_file_id)
            assert [each["custom_id"] for each in lines] == [f"q{n}" for n in range(9)]
            for each in lines:
                assert each["response"]["status_code"] == 200
                assert each["response"]["body"]["choices"][0]["message"]["content"] == "Paris."
            told = [each["response"]["body"]["usage"] for each in lines]
            assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in told) > 0
            assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in told) > 0
            assert batch.usage.total_tokens == sum(usage["total_tokens"] for usage in told)
            assert begun.usage.total_tokens == 0
            assert [one.id async for one in api.batches.list()] == [batch.id]
            assert [one.purpose async for one in api.files.list()] == ["batch_output", "batch"]
            assert len(list(batching.folder.glob("file-*"))) == 2

    asyncio.run(run())
    assert {request.priority for request in client.opened} == {BELOW_ALL}
    assert batching.service.telemetry.tallies == {}, "what nobody waits for is in nobody's times"


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "one"}),
        ("/v1/responses", {"model": "tiny", "input": "one"}),
        ("/v1/messages", {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "one"}]}),
        ("/tokenize", {"model": "tiny", "prompt": "one"}),
    ],
)
def test_every_endpoint_that_answers_with_json(batching: Any, url: str, body: Any) -> None:
    async def run() -> None:
        async with batching.client() as api, batching.working():
            begun = await batching.begun(api, {"custom_id": "a", "method": "POST", "url": url, "body": body}, url=url)
            batch = await batching.ended(api, begun.id)
            (line,) = await batching.lines_of(api, batch.output_file_id)
            assert line["response"]["body"]

    asyncio.run(run())
    assert not {path for path in batching.batches.paths if "adapter" in path or "batch" in path or "{" in path}


def test_lines_that_fail_have_a_file_of_their_own(batching: Any, line: Any) -> None:
    async def run() -> None:
        async with batching.client() as api, batching.working():
            begun = await batching.begun(api, line("good"), line("bad", temperature=-1), line("also", max_tokens=3))
            batch = await batching.ended(api, begun.id)
            counts = batch.request_counts
            assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1)
            (failed,) = await batching.lines_of(api, batch.error_file_id)
            assert (failed["custom_id"], failed["response"]["status_code"]) == ("bad", 400)
            assert "temperature" in failed["response"]["body"]["error"]["message"]
            assert len(await batching.lines_of(api, batch.output_file_id)) == 2

    asyncio.run(run())


def test_a_file_with_wrong_lines_fails_as_a_whole_and_says_where(batching: Any, line: Any) -> None:
    wrong = [line("a"), "{", line("a"), line("b") | {"method": "GET"}, line("c", url="/v1/completions")]
    wrong += [line("d", model="other"), line("e", stream=True), {"custom_id": "f"}, "[]", line("g", background=True)]
    wrong += [line("h", deadline_ms=1)]

    async def run() -> None:
        async with batching.client() as api, batching.working():
            batch = await batching.ended(api, (await batching.begun(api, *wrong)).id)
            assert (batch.status, batch.output_file_id) == ("failed", None)
            assert [(error.line, error.code) for error in batch.errors.data] == [
                (2, "invalid_json_line"),
                (3, "duplicate_custom_id"),
                (4, "invalid_method"),
                (5, "invalid_url"),
                (6, "mismatched_model"),
                (7, "invalid_request"),
                (8, "invalid_request"),
                (9, "invalid_request"),
                (10, "invalid_request"),
                (11, "invalid_request"),
            ]
            empty = await batching.ended(api, (await batching.begun(api, "\n")).id)
            assert [error.code for error in empty.errors.data] == ["empty_file"]

    asyncio.run(run())


def test_what_is_refused_comes_again_and_ends_in_the_error_file(
    batching: Any, line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_serve.api.batches.runner.MAX_TRIES", 2)
    monkeypatch.setattr("octavo_serve.api.batches.runner.FIRST_PAUSE", 0.001)
    asked: list[str] = []

    async def ask(owner: str, path: str, body: bytes) -> Reply:
        name = json.loads(body)["messages"][0]["content"]
        asked.append(name)
        again = name == "never" or asked.count(name) < 3
        return Reply(503, b'{"error":{}}', again=0.001) if again else Reply(200, b'{"a":\n1}')

    async def run() -> None:
        async with batching.client() as api, batching.working(ask):
            batch = await batching.ended(api, (await batching.begun(api, line("never"), line("third"))).id)
            (failed,) = await batching.lines_of(api, batch.error_file_id)
            assert (failed["custom_id"], failed["response"]["status_code"]) == ("never", 503)
            (done,) = await batching.lines_of(api, batch.output_file_id)
            assert (done["custom_id"], done["response"]["body"]) == ("third", {"a": 1})
            assert batching.batches.counts.lines == {"refused": 4, "completed": 1, "failed": 1}

    asyncio.run(run())
    assert sorted(asked) == ["never"] * 3 + ["third"] * 3


@pytest.mark.parametrize(("room", "room_bytes", "given"), [(2, 2**20, 2), (0, 2**20, 0), (-2, 2**20, 0), (2, 1, 0)])
def test_a_gateway_gets_as_many_lines_as_it_has_room_for(
    batching: Any, line: Any, room: int, room_bytes: int, given: int
) -> None:
    """Less than none, where another gateway or people have come."""
    batches, holding = batching.batches, Holding(0)

    async def run() -> None:
        async with batching.client() as api:
            async with batching.working(holding):
                begun = await batching.begun(api, *[line(f"q{n}") for n in range(20)])
                await until(lambda: holding.held == batching.room)
            asking = Asking("another", [], {begun.id: room}, room_bytes, chores=False)
            turn = await batches.run(work.turn, asking, batches.clock(), batches.on)
            assert (len(turn.lines), turn.waiting) == (given, 20)

    asyncio.run(run())


def test_a_quota_slows_a_batch_down_and_costs_it_no_line(
    batching: Any, line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line in 20 ms is answered, where four would be under way."""
    monkeypatch.setattr("octavo_serve.api.batches.runner.FIRST_PAUSE", 0.001)
    free, refused = [0.0], 0

    async def ask(owner: str, path: str, body: bytes) -> Reply:
        nonlocal refused
        now = asyncio.get_running_loop().time()
        if now < free[0]:
            refused += 1
            return Reply(429, b"{}", again=free[0] - now)
        free[0] = now + 0.02
        return Reply(200, b"{}")

    async def run() -> None:
        async with batching.client() as api, batching.working(ask):
            begun = await batching.begun(api, *[line(f"q{n}") for n in range(30)])
            batch = await batching.ended(api, begun.id)
            assert (batch.request_counts.completed, batch.request_counts.failed) == (30, 0)

    asyncio.run(run())
    assert refused


class Holding:
    """Answers the first few lines, and none of the others."""

    def __init__(self, answered: int) -> None:
        self.answered, self.held, self.left = answered, 0, 0

    async def __call__(self, owner: str, path: str, body: bytes) -> Reply:
        self.answered -= 1
        if self.answered >= 0:
            return Reply(200, b"{}")
        self.held += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.left += 1
        raise AssertionError


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_cancelled_batch_keeps_what_was_done(batching: Any, line: Any) -> None:
    holding = Holding(3)

    async def run() -> None:
        async with batching.client() as api, batching.working(holding):
            begun = await batching.begun(api, *[line(f"q{n}") for n in range(9)])
            await until(lambda: holding.held == batching.room)
            assert (await api.batches.cancel(begun.id)).status == "cancelling"
            batch = await batching.ended(api, begun.id)
            assert (batch.status, holding.left, batch.request_counts.completed) == ("cancelled", 4, 3)
            assert batch.cancelling_at <= batch.cancelled_at
            assert len(await batching.lines_of(api, batch.output_file_id)) == 3
            assert (await api.batches.cancel(begun.id)).status == "cancelled"

    asyncio.run(run())


def test_a_batch_that_is_cancelled_before_it_is_checked_is_not(batching: Any, line: Any) -> None:
    async def run() -> None:
        async with batching.client() as api:
            begun = await batching.begun(api, line("a"), "{")
            await api.batches.cancel(begun.id)
            async with batching.working():
                batch = await batching.ended(api, begun.id)
            assert (batch.status, batch.request_counts.total, batch.output_file_id) == ("cancelled", 0, None)
            assert batch.errors is None

    asyncio.run(run())


def test_an_expired_batch_says_which_lines_were_not_done(batching: Any, line: Any) -> None:
    holding = Holding(1)
    now = batching.batches.clock()

    async def run() -> None:
        async with batching.client() as api, batching.working(holding):
            begun = await batching.begun(api, *[line(f"q{n}") for n in range(3)])
            assert begun.expires_at - begun.created_at == 24 * HOUR
            await until(lambda: holding.held == 2)
            batching.batches.clock = lambda: now + 25 * HOUR
            batch = await batching.ended(api, begun.id)
            assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("expired", 1, 2)
            codes = [each["error"]["code"] for each in await batching.lines_of(api, batch.error_file_id)]
            assert codes == ["batch_expired"] * 2

    asyncio.run(run())


def test_two_gateways_and_one_that_is_killed_answer_each_line_once(batching: Any, line: Any) -> None:
    """The killed one is heard of again once its lines are somebody else's: what it says is not taken."""
    held, done = asyncio.Event(), list[str]()

    async def slow(owner: str, path: str, body: bytes) -> Reply:
        await held.wait()
        return Reply(200, b'{"by":"slow"}', usage=Usage(completion_tokens=1))

    async def quick(owner: str, path: str, body: bytes) -> Reply:
        done.append(json.loads(body)["messages"][0]["content"])
        return Reply(200, b'{"by":"quick"}', usage=Usage(completion_tokens=1))

    async def run() -> None:
        now = batching.batches.clock()
        async with batching.client() as api, batching.working(slow):
            begun = await batching.begun(api, *[line(f"q{n}") for n in range(8)])
            await until(lambda: batching.batches.counts.running == batching.room)
            other = batching.beside()
            async with other.working(quick):
                await until(lambda: len(done) == 4)
                other.batches.clock = lambda: now + 60
                await until(lambda: len(done) == 8)
                held.set()
                batch = await batching.ended(api, begun.id)
            lines = await batching.lines_of(api, batch.output_file_id)
            assert [each["custom_id"] for each in lines] == [f"q{n}" for n in range(8)]
            assert {each["response"]["body"]["by"] for each in lines} == {"quick"}
            assert batch.usage.output_tokens == 8, "what the killed one did is not counted"
            assert batch.request_counts.completed == 8

    asyncio.run(run())


def test_nobody_else_sees_a_callers_batches(batching: Any, line: Any) -> None:
    holders = {name: f"key-of-{name}" for name in ("alice", "bob")}
    keys = Keys(KnownKey(Caller(name), sha256(key.encode()).digest()) for name, key in holders.items())
    batching.access.rules = replace(Rules(), keys=keys)

    async def run() -> None:
        async with (
            batching.client(holders["alice"]) as alice,
            batching.client(holders["bob"]) as bob,
            batching.working(),
        ):
            batch = await batching.ended(alice, (await batching.begun(alice, line("a"))).id)
            tries = [
                bob.batches.retrieve(batch.id),
                bob.batches.cancel(batch.id),
                bob.files.retrieve(batch.input_file_id),
                bob.files.content(batch.output_file_id),
                bob.files.delete(batch.output_file_id),
            ]
            for attempt in tries:
                with pytest.raises(openai.NotFoundError):
                    await attempt
            with pytest.raises(openai.BadRequestError, match="no file"):
                await bob.batches.create(
                    input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
                )
            assert [one async for one in bob.batches.list()] == [one async for one in bob.files.list()] == []
            with pytest.raises(openai.BadRequestError, match="no batch"):
                await bob.batches.list(after=batch.id)

    asyncio.run(run())


@pytest.mark.parametrize(("disclose", "told"), [(False, 0), (True, 8)])
def test_a_batch_tells_of_the_cache_what_its_answers_tell(batching: Any, line: Any, disclose: bool, told: int) -> None:
    keys = Keys([KnownKey(Caller("alice"), sha256(b"key").digest())])
    batching.access.rules = replace(Rules(), keys=keys, disclose=disclose)

    async def ask(owner: str, path: str, body: bytes) -> Reply:
        return Reply(200, b"{}", usage=Usage(prompt_tokens=9, cached_tokens=8))

    async def run() -> None:
        async with batching.client("key") as alice, batching.working(ask):
            batch = await batching.ended(alice, (await batching.begun(alice, line("a"))).id)
            listed = [one async for one in alice.batches.list()]
            cancelled = await alice.batches.cancel(batch.id)
            for each in (batch, cancelled, *listed):
                assert each.usage.input_tokens == 9
                assert each.usage.input_tokens_details.cached_tokens == told

    asyncio.run(run())


def test_lists_have_pages(batching: Any, line: Any) -> None:
    async def run() -> None:
        async with batching.client() as api:
            made = [(await batching.begun(api, line("a"))).id for _ in range(5)]
            assert [one.id async for one in api.batches.list(limit=2)] == made[::-1]
            ids = [one.id async for one in api.files.list(limit=2, order="asc")]
            assert len(ids) == 5
            assert [one.id async for one in api.files.list(limit=3)] == ids[::-1]
            assert [one async for one in api.files.list(purpose="batch_output")] == []

    asyncio.run(run())


def test_what_a_batch_cannot_be_for_is_said(batching: Any, line: Any) -> None:
    async def run() -> None:
        async with batching.client() as api:
            for url in ("/v1/batches", "/v1/load_lora_adapter", "/health", "/v1/models/../chat/completions", ""):
                with pytest.raises(openai.BadRequestError, match="/v1/chat/completions"):
                    await batching.begun(api, line("a"), url=url)
            batching.batches.settings = None
            with pytest.raises(openai.NotFoundError, match=r"gateway\.batches"):
                await api.batches.list()
            with pytest.raises(openai.NotFoundError, match=r"gateway\.batches"):
                await batching.begun(api, line("a"))
            batching.batches.paths = frozenset()  # as where there has never been a folder
            with pytest.raises(openai.NotFoundError, match=r"gateway\.batches"):
                await api.batches.create(input_file_id="f", endpoint="/v1/responses", completion_window="24h")

    asyncio.run(run())


@pytest.mark.parametrize(("wanted", "rate"), [(None, 40.0), (30.0, 15.0), (1000.0, 500.0)])
def test_gateways_share_the_lines_that_begin_in_a_second(
    batching: Any, line: Any, monkeypatch: pytest.MonkeyPatch, wanted: float | None, rate: float
) -> None:
    """Two of them on a machine with 16 cores: each begins as many as it may, unless it is told how many."""
    monkeypatch.setattr("octavo_serve.api.batches.runner.os.cpu_count", lambda: 16)
    monkeypatch.setattr("octavo_serve.api.batches.runner.MOST_LINES", 40.0)
    batching.batches.settings = replace(batching.batches.settings, lines_per_second=wanted)
    runners = [Runner(each.batches, each.ask, lambda _: 4, lambda: 2**20) for each in (batching, batching.beside())]

    async def run() -> None:
        tasks = [asyncio.create_task(runner.run()) for runner in runners]
        await until(lambda: runners[0].workers == runners[1].workers == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert runners[0].rate == 2 * rate or wanted is None
    asyncio.run(run())
    assert runners[0].rate == rate


def test_too_many_that_are_not_finished_are_refused(batching: Any, line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_serve.api.batches.store.MAX_UNFINISHED", 2)

    async def run() -> None:
        async with batching.client() as api:
            for _ in range(2):
                await batching.begun(api, line("a"))
            with pytest.raises(openai.BadRequestError, match="2 batches of yours are not finished"):
                await batching.begun(api, line("a"))

    asyncio.run(run())


def test_a_model_that_is_overloaded_is_asked_again(batching: Any, line: Any, client: Any) -> None:
    """What is below all others is not refused for load, for it waits behind everybody."""
    client.full = Overloaded("the queue is full", 1.0)

    async def run() -> None:
        async with batching.client() as api, batching.working():
            batch = await batching.ended(api, (await batching.begun(api, line("a"))).id)
            assert batch.request_counts.completed == 1

    asyncio.run(run())
