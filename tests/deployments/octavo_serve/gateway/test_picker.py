"""Picking shards: the real router and feed; Serve's list of replicas and its counts by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator

import pytest

from octavo.errors import EngineDead
from octavo.request import Request, SamplingParams
from octavo.routing.router import RoutingConfig
from octavo_serve.gateway.link import Link
from octavo_serve.gateway.picker import Picker
from octavo_serve.ray_private import Replica
from octavo_serve.wire.messages import Address


class Books:
    """Serve's side of a deployment."""

    name = "shard-m"

    def __init__(self) -> None:
        self.available = True
        self.asks = 0
        self.running: Counter[str] = Counter()
        self.waiting: list[bool] = []
        self.closed = False

    def asked(self) -> None:
        self.asks += 1

    @contextlib.contextmanager
    def queued(self, again: bool) -> Iterator[None]:
        self.waiting.append(again)
        try:
            yield
        finally:
            self.waiting.remove(again)

    def started(self, replica: Replica) -> None:
        self.running[replica.id] += 1

    def ended(self, replica: Replica) -> None:
        self.running[replica.id] -= 1

    async def close(self) -> None:
        self.closed = True


Scenario = Callable[[Picker, Books], Coroutine[None, None, None]]


def run(scenario: Scenario, routing: RoutingConfig | None = None) -> None:
    async def main() -> None:
        books = Books()
        picker = Picker(routing or RoutingConfig(), books)
        picker.listed()
        try:
            await scenario(picker, books)
        finally:
            await picker.close()
        assert books.closed

    asyncio.run(main())


def request(name: str, chain: list[bytes] | None = None, n: int = 1, session: str = "") -> Request:
    params = SamplingParams(n=n)
    return Request(request_id=name, prompt_token_ids=[1] * 100, params=params, block_hashes=chain, session=session)


def start(picker: Picker, name: str, capacity: int = 8) -> Link:
    link = Link(Address("127.0.0.1", 1, "00"), silence=10.0)
    picker.join(Replica(name, capacity, {}, name), link)
    return link


async def waits(books: Books, count: int) -> None:
    while len(books.waiting) != count:
        await asyncio.sleep(0)


def test_a_request_is_on_all_books_until_it_has_ended() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        link = start(picker, "a")
        asked = request("1", [b"x"], n=2)
        picked = await picker.pick(asked)
        assert picked.link is link
        assert (picked.placement.ticket, picked.placement.shard, picked.placement.reason) == ("1", "a", "load")
        assert picked.placement.first_token > 0
        assert asked.placement is None
        assert books.running == {"a": 1}
        assert picker.router.shards["a"].in_flight == 2
        picked.ended(ran=True)
        assert books.running == {"a": 0}
        assert picker.router.shards["a"].in_flight == 0
        assert (books.asks, books.waiting) == (1, [])

    run(scenario)


def test_a_prefix_returns_to_its_shard_if_it_ran_there() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        for name in "abc":
            start(picker, name)
        first = await picker.pick(request("1", [b"x", b"y"]))
        first.ended(ran=True)
        for number in range(5):
            again = await picker.pick(request(f"again {number}", [b"x", b"y", b"z"]))
            again.ended(ran=True)
            assert (again.placement.shard, again.placement.reason) == (first.placement.shard, "prefix")
        refused = await picker.pick(request("2", [b"p", b"q"]))
        refused.ended(ran=False)
        assert (await picker.pick(request("3", [b"p", b"q"]))).placement.cached_tokens == 0

    run(scenario)


def test_a_burst_is_spread_before_any_shard_has_answered() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a")
        start(picker, "b")
        found = [(await picker.pick(request(str(i), [bytes([i])]))).placement.shard for i in range(10)]
        assert sorted(found) == ["a"] * 5 + ["b"] * 5

    run(scenario)


@pytest.mark.parametrize(("policy", "shards"), [("session", 1), ("round_robin", 3)])
def test_policies_are_chosen_by_name(policy: str, shards: int) -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        for name in "abc":
            start(picker, name)
        found = {(await picker.pick(request(str(i), session="alice"))).placement.shard for i in range(6)}
        assert len(found) == shards

    run(scenario, RoutingConfig(policy=policy))  # type: ignore[arg-type]


def test_a_full_shard_is_passed_over_and_requests_wait_in_order_for_room() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a", 1)
        start(picker, "b", 1)
        running = [await picker.pick(request(f"r{i}")) for i in range(2)]
        assert {picked.placement.shard for picked in running} == {"a", "b"}
        order: list[str] = []

        async def wait(name: str) -> None:
            picked = await picker.pick(request(name))
            order.append(name)
            picked.ended(ran=True)

        waiting = [asyncio.create_task(wait(f"w{i}")) for i in range(5)]
        await waits(books, 5)
        running[0].ended(ran=True)
        await asyncio.gather(*waiting)
        assert order == [f"w{i}" for i in range(5)]
        assert books.waiting == []

    run(scenario)


def test_a_request_waits_for_the_first_shard() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        picker = Picker(RoutingConfig(), books)
        waiting = asyncio.create_task(picker.pick(request("1")))
        await asyncio.sleep(0)
        assert (books.asks, books.waiting) == (0, [])  # Serve has not said yet whether there are any
        picker.listed()
        await waits(books, 1)  # which is what brings a shard up where there may be none
        start(picker, "a")
        assert (await waiting).placement.shard == "a"
        await picker.close()

    run(scenario)


def test_shards_come_and_go() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a")
        start(picker, "b")
        picker.leave("a")
        start(picker, "c")
        assert set(picker.router.shards) == {"b", "c"}
        assert {(await picker.pick(request(str(i)))).placement.shard for i in range(4)} == {"b", "c"}

    run(scenario)


def test_a_shard_that_is_gone_is_not_picked_until_it_joins_again() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a")
        picked = await picker.pick(request("1"))
        start(picker, "b")
        picked.gone()
        picked.ended(ran=False)
        assert {(await picker.pick(request(str(i)))).placement.shard for i in range(4)} == {"b"}
        assert set(picker.router.shards) == set(picker.links) == {"b"}
        again = start(picker, "a")
        picked.gone()  # as the next request over the old link finds
        assert picker.links["a"] is again

    run(scenario)


def test_a_deployment_that_has_failed_is_an_error_and_a_cancelled_wait_leaves_nothing() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        cancelled, waiting = (asyncio.create_task(picker.pick(request(name))) for name in "12")
        await waits(books, 2)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert len(books.waiting) == 1
        books.available = False
        picker.listed()
        with pytest.raises(EngineDead, match="shard-m has failed"):
            await waiting
        assert books.waiting == []

    run(scenario)


def test_a_shard_that_may_take_more_from_now_on_wakes_who_waits() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        link = start(picker, "a", capacity=1)
        await picker.pick(request("1"))
        waiting = asyncio.create_task(picker.pick(request("2")))
        await waits(books, 1)
        picker.join(Replica("a", 2, {}, "a"), link)
        async with asyncio.timeout(60):
            await waiting
        assert books.running == {"a": 2}

    run(scenario)
