"""Picking shards: the real router and feed; Serve's list of replicas and its counts by hand."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace

import pytest

from octavo.cost_model import Cost
from octavo.errors import DeadlineMissed, EngineDead, ModelNotReady, Overloaded
from octavo.load import ShardState
from octavo.request import Request, SamplingParams
from octavo.routing.admission import FEW, QueueLimits
from octavo.routing.router import RoutingConfig
from octavo_serve.api.model import Claim
from octavo_serve.api.tenants import NOBODY
from octavo_serve.gateway.link import Link
from octavo_serve.gateway.picker import Picker, QueueSettings
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
        asked = request("1", [b"x" * 16], n=2)
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
        first = await picker.pick(request("1", [b"x" * 16, b"y" * 16]))
        first.ended(ran=True)
        for number in range(5):
            again = await picker.pick(request(f"again {number}", [b"x" * 16, b"y" * 16, b"z" * 16]))
            again.ended(ran=True)
            assert (again.placement.shard, again.placement.reason) == (first.placement.shard, "prefix")
        refused = await picker.pick(request("2", [b"p" * 16, b"q" * 16]))
        refused.ended(ran=False)
        assert (await picker.pick(request("3", [b"p" * 16, b"q" * 16]))).placement.cached_tokens == 0

    run(scenario)


def test_a_burst_is_spread_before_any_shard_has_answered() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a")
        start(picker, "b")
        found = [(await picker.pick(request(str(i), [bytes([i]) * 16]))).placement.shard for i in range(10)]
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


BUSY = ShardState(
    decoding=1, context=100, prefilling=0, queued=0, backlog_tokens=0, backlog_attended=0, chunk=512, max_num_seqs=1,
    blocks=4096, blocks_free=2000, block_size=16, mean_output=100.0, cost=Cost(0.010, 0.0, 0.0, 0.0, 0.0),
)  # fmt: skip
"""One sequence a second."""


def report(picker: Picker, name: str, state: ShardState = BUSY) -> None:
    picker.router.heard(name, state, ["runs", "1"], time.monotonic())
    picker.router.settle(time.monotonic())


def admit(picker: Picker, key: bytes = b"") -> None:
    with picker.admitted(lambda: key, 1, 100):
        pass


def full(picker: Picker, key: bytes = b"") -> float:
    with pytest.raises((Overloaded, ModelNotReady)) as error:
        admit(picker, key)
    found = error.value.retry_after
    assert found is not None
    return found


def test_what_waits_in_the_gateway_and_at_the_shard_is_bounded_in_seconds() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a", capacity=1)
        report(picker, "a")
        picker.queue = QueueSettings(QueueLimits(5.0))
        admit(picker)
        await picker.pick(request("runs"))
        waiting = [asyncio.create_task(picker.pick(request(f"w{i}"))) for i in range(9)]
        await waits(books, 9)
        report(picker, "a")
        assert 4 < full(picker) < 8  # it would begin after about ten
        assert (picker.waiting, picker.refused) == (9, {"queue": 1})
        assert 9 < picker.queue_seconds() < 13
        report(picker, "a", replace(BUSY, queued=99))
        picker.queue = QueueSettings(QueueLimits(5.0, 900 - 1))
        assert full(picker, b"another") > 90
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        report(picker, "a", replace(BUSY, decoding=0, context=0))
        admit(picker)

    run(scenario)


def test_those_who_are_still_being_tokenised_are_ahead_too() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a")
        report(picker, "a", replace(BUSY, decoding=0, context=0))
        picker.queue = QueueSettings(QueueLimits(5.0))
        with picker.admitted(lambda: b"1", 10, 1000):
            assert 4 < full(picker) < 8
        admit(picker)

    run(scenario)


def test_the_wait_for_a_first_shard_is_not_taken_for_the_time_that_prompts_are_prepared_in() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        picker.queue = QueueSettings(QueueLimits(5.0), start_seconds=1.0)
        with picker.admitted(lambda: b"1", 1, 5000):
            await asyncio.sleep(0.02)
            start(picker, "a")
        assert picker._preparing == 0.0

    run(scenario)


def test_prompts_that_are_prepared_more_slowly_than_shards_take_them_are_ahead_too() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        for name in "abcdefgh":
            start(picker, name)
            report(picker, name, replace(BUSY, decoding=0, context=0, max_num_seqs=64))
        with picker.admitted(lambda: b"", 1, 5000):
            await asyncio.sleep(0.05)  # 10 us per token
        with contextlib.ExitStack() as others:
            for _ in range(200):
                others.enter_context(picker.admitted(lambda: b"", 1, 5000))
            picker.queue = QueueSettings(QueueLimits(5.0))
            assert full(picker) >= 4.9
        admit(picker)

    run(scenario)


def test_what_waits_for_a_first_shard_is_bounded_in_tokens() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        picker.queue = QueueSettings(QueueLimits(30.0, 1000), start_seconds=10.0)
        with picker.admitted(lambda: b"1", 1, 5000):  # alone, it may be of any length
            assert full(picker, b"2") > 5
        admit(picker, b"3")

    run(scenario)


@pytest.mark.parametrize("capacity", [1, 8])
def test_a_shard_that_is_very_slow_still_serves_a_few(capacity: int) -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a", capacity)
        picker.queue = QueueSettings(QueueLimits(30.0))
        slow = replace(BUSY, decoding=0, context=0, max_num_seqs=8, cost=Cost(0.010, 0.010, 0.0, 0.0, 0.0))
        waiting = []
        for number in range(FEW):  # each computes its prompt for a minute
            report(picker, "a", slow)
            admit(picker, b"%d" % number)
            long = replace(request(f"long {number}"), prompt_token_ids=[1] * 6000)
            waiting.append(asyncio.create_task(picker.pick(long)))
            await asyncio.sleep(0)
        assert full(picker, b"more") > 100
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    run(scenario)


def test_a_prompts_worth_of_tokens_is_bounded_too() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a")
        picker.queue = QueueSettings(QueueLimits(1e9, 1000))
        report(picker, "a", replace(BUSY, queued=5, backlog_tokens=1000))
        admit(picker)
        report(picker, "a", replace(BUSY, queued=5, backlog_tokens=1001))
        full(picker)

    run(scenario)


def test_a_start_that_takes_too_long_is_refused_and_still_brings_the_shard_up() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        picker.queue = QueueSettings(QueueLimits(30.0), start_seconds=50.0)
        assert full(picker, b"1") == pytest.approx(20.0, abs=1.0)
        assert picker.refused == {"starting": 1}
        await waits(books, 1)  # Serve scales by what waits
        full(picker, b"2")
        await asyncio.sleep(0)
        assert len(books.waiting) == 1
        start(picker, "a")
        await waits(books, 0)
        assert picker.start_seconds < 50, "how long it took is known now"
        admit(picker, b"2")

    run(scenario)


def test_a_model_that_may_grow_is_judged_by_the_shards_that_will_come() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a", capacity=1)
        report(picker, "a")
        await picker.pick(request("runs"))
        waiting = [asyncio.create_task(picker.pick(request(f"w{i}"))) for i in range(40)]
        await waits(books, 40)
        report(picker, "a")
        picker.queue = QueueSettings(QueueLimits(15.0))
        assert full(picker) > 20
        picker.queue = QueueSettings(QueueLimits(15.0), most_shards=8, start_seconds=5.0)
        admit(picker)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    run(scenario)


def test_while_a_shard_is_lost_the_others_are_bounded_as_before() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        picker.queue = QueueSettings(QueueLimits(15.0), most_shards=2, start_seconds=10.0)
        start(picker, "a", capacity=10_000)
        report(picker, "a", replace(BUSY, queued=99))
        assert full(picker) > 50

    run(scenario)


def test_those_who_are_being_prepared_will_wait_too_where_all_shards_are_full() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a", capacity=1)
        report(picker, "a", replace(BUSY, max_num_seqs=100))
        picker.queue = QueueSettings(QueueLimits(30.0))
        await picker.pick(request("here"))
        waiting = [asyncio.create_task(picker.pick(request(f"w{i}"))) for i in range(20)]
        await waits(books, 20)
        admit(picker)
        with picker.admitted(lambda: b"", 20, 2000):
            assert 5 < full(picker) < 20
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    run(scenario)


def test_a_closed_picker_tells_who_waits_and_who_comes() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        closed = Picker(RoutingConfig(), Books())
        closed.listed()
        waiting = asyncio.create_task(closed.pick(request("waits")))
        await asyncio.sleep(0)
        await closed.close()
        for asked in (waiting, closed.pick(request("comes")), closed.anybody()):
            with pytest.raises(EngineDead, match="not served any more"):
                async with asyncio.timeout(60):
                    await asked

    run(scenario)


def test_a_shard_that_would_keep_a_session_waiting_too_long_is_passed_over() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        for name in "ab":
            start(picker, name)
        picker.queue = QueueSettings(QueueLimits(5.0))
        home = (await picker.pick(request("1", session="alice"))).placement.shard
        report(picker, home, replace(BUSY, queued=50))
        assert (await picker.pick(request("2", session="alice"))).placement.shard != home
        for name in "ab":
            report(picker, name, replace(BUSY, queued=50))
        assert (await picker.pick(request("3", session="alice"))).placement.shard == home

    run(scenario, RoutingConfig(policy="session"))


def test_what_would_come_after_its_deadline_is_refused_with_what_is_possible() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a", capacity=3)
        report(picker, "a", replace(BUSY, queued=9))  # ten seconds
        said = r"in about \d+\.\d\d s, .* of its 5\.00 s: allow for 1[56]"
        with (
            pytest.raises(DeadlineMissed, match=said) as error,
            picker.admitted(lambda: b"", 1, 100, Claim.of(5000.0, NOBODY)),
        ):
            pass
        assert error.value.retry_after == pytest.approx(11, abs=1)
        with picker.admitted(lambda: b"", 1, 100, Claim.of(20_000.0, NOBODY)):
            pass
        with pytest.raises(DeadlineMissed):
            await picker.pick(replace(request("2"), deadline=5.0))
        picker.router.settle(time.monotonic())
        assert picker.router.shards["a"].in_flight == 0
        assert (picker.refused, books.running) == ({"deadline": 2}, {})

    run(scenario)


def test_who_waits_past_its_deadline_is_told_so_and_the_next_goes_on() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a", capacity=1)
        picked = await picker.pick(request("1"))
        late, patient = request("2"), request("3")
        late.deadline = 0.01
        waiting = asyncio.create_task(picker.pick(patient))
        with pytest.raises(DeadlineMissed, match=r"for 0\.01 s, its deadline"):
            await picker.pick(late)
        picked.ended(ran=True)
        async with asyncio.timeout(60):
            await waiting
        assert books.running == {"a": 1}

    run(scenario)


def test_who_fills_the_queue_is_refused_and_who_does_not_is_sent_first() -> None:
    async def scenario(picker: Picker, books: Books) -> None:
        start(picker, "a", capacity=1)
        report(picker, "a")
        picker.queue = QueueSettings(QueueLimits(5.0), policy="fair")
        noisy = [replace(request(f"n{i}"), tenant="noisy") for i in range(10)]
        picker.parts.add("noisy", 1.0, len(noisy))
        before = await picker.pick(noisy[0])
        waiting = [asyncio.create_task(picker.pick(each)) for each in noisy[1:]]
        await waits(books, 9)
        before.ended(ran=True)
        first = await waiting[0]
        report(picker, "a")
        with pytest.raises(Overloaded), picker.admitted(lambda: b"n", 1, 100, Claim("noisy")):
            pass
        with picker.admitted(lambda: b"q" * 16, 1, 100, Claim("quiet")):
            quiet = asyncio.create_task(picker.pick(replace(request("q"), tenant="quiet")))
            await waits(books, 9)
        async with asyncio.timeout(60):
            first.ended(ran=True)
            assert (await quiet).placement.ticket == "q"
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    run(scenario)
