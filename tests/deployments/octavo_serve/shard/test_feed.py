"""The feed over real sockets: an engine in a thread, a router behind its link, a wire that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.engine import Engine
from octavo.engine.served_engine import ServedEngine
from octavo.load import LoadedAdapters
from octavo.rehearsal.simulated import Profile, SimulatedExecutor
from octavo.request import Adapter, Placement, Request, SamplingParams
from octavo.routing.index import ShardBlocks, keys_of
from octavo.routing.policy import Query
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.gateway.link import Link
from octavo_serve.shard.feed import FEED_UNREAD, PART, SLOWEST_SECONDS, Feed
from octavo_serve.shard.port import Port
from octavo_serve.wire.messages import TO_GATEWAY, Address, Ask, Blocks, Report

MACHINE = Profile("test", Cost(1e-3, 1e-6, 0, 0, 0), 1, 16 * 20_000, 8192, ())


class Shard:
    """An engine and its port; `work` runs requests until their blocks are published, in a thread."""

    def __init__(self) -> None:
        config = EngineConfig(max_num_batched_tokens=4096)
        executor = SimulatedExecutor(MACHINE, config, range(1000), 1000, sleep=lambda _: None)
        self.engine = Engine("m", executor, config, ())
        asleep = AsyncEngine.__new__(AsyncEngine)  # its engine is stepped here
        asleep._error = None
        asleep.engine = self.engine
        asleep.check_health = lambda: None  # type: ignore[method-assign]
        self.port = Port(ServedEngine(asleep), "a", report_s=0.02)
        self.number = 0

    async def work(self, requests: int, tokens: int = 160, ticket: str = "") -> None:
        await asyncio.to_thread(self._work, requests, tokens, ticket)

    def _work(self, requests: int, tokens: int, ticket: str) -> None:
        drawn = random.Random(self.number)
        for _ in range(requests):
            self.number += 1
            prompt = [drawn.randrange(1000) for _ in range(tokens)]
            request = Request(
                request_id=str(self.number), prompt_token_ids=prompt, params=SamplingParams(max_tokens=1)
            )  # fmt: skip
            request.placement = Placement(ticket or str(self.number), "a", "load", 0, 0.0)
            self.engine.add(request)
            while self.engine.has_work:
                self.engine.step()

    def truth(self) -> set[int]:
        return set(keys_of(self.engine.pool.snapshot()[1]))


class Listener:
    """A router and its link to a shard."""

    def __init__(self, link: Link, capacity: int = 500_000) -> None:
        self.router = Router(RoutingConfig(max_blocks_per_shard=capacity, stale_after_s=0.6))
        self.router.join("a", time.monotonic())
        self.link = link
        link.tell(self.router, "a")

    @property
    def blocks(self) -> set[int]:
        return self.router.shards["a"].blocks.keys

    def is_stale(self) -> bool:
        self.router.route("look", [], Query(1), ["a"], time.monotonic())
        return self.router.shards["a"].stale


async def listen(address: Address, capacity: int = 500_000) -> Listener:
    link = await Link.open(address, silence=20.0)
    assert link is not None
    return Listener(link, capacity)


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def run(scenario: Callable[[Shard, Address], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        shard = Shard()
        address = await shard.port.open("127.0.0.1")
        try:
            await scenario(shard, address)
        finally:
            await shard.port.leave(0)

    asyncio.run(main())


def test_a_listener_that_comes_late_gets_everything() -> None:
    async def scenario(shard: Shard, address: Address) -> None:
        await shard.work(900)  # 9,000 blocks: a snapshot in parts
        assert len(shard.truth()) > 2 * PART
        here = await listen(address)
        await wait_for(lambda: here.blocks == shard.truth())
        assert here.router.shards["a"].blocks.snapshots == 1

    run(scenario)


def test_events_follow_through_evictions() -> None:
    async def scenario(shard: Shard, address: Address) -> None:
        here = await listen(address)
        await wait_for(lambda: here.router.shards["a"].blocks.exact)
        await shard.work(3000)  # 30,000 blocks through a pool of 20,000
        shard.engine.pool.clear_cache()
        await shard.work(10)
        await wait_for(lambda: here.blocks == shard.truth())

    run(scenario)


class Ear:
    """Who only counts."""

    unread = 0

    def __init__(self) -> None:
        self.heard: list[object] = []

    def send_encoded(self, message: bytes) -> None:
        self.heard.append(TO_GATEWAY.decode(message))


def test_who_hears_of_many_shards_is_told_less_often_and_as_much() -> None:
    async def scenario(shard: Shard, address: Address) -> None:
        ear = Ear()
        feed = Feed(shard.engine, 0.001, [ear])
        feed.open()
        feed.answer(ear, Ask(1.0, pace=1000.0))
        start = time.monotonic()
        for number in range(20):
            await shard.work(1)
            feed.answer(ear, Ask(2.0 + number, pace=1000.0))  # as sixteen gateways do all the time
        told = [message for message in ear.heard if isinstance(message, Blocks)]
        assert len(told) <= 2 + (time.monotonic() - start) / SLOWEST_SECONDS
        await wait_for(lambda: any(isinstance(each, Report) and each.echo == 21.0 for each in ear.heard))
        known = ShardBlocks(1000)
        known.part(0, 0, 1, [])
        for message in ear.heard:
            if isinstance(message, Blocks):
                known.changes(message.first, [(kind, [hashes]) for kind, hashes in message.changes])
            elif isinstance(message, Report) and message.echo is not None:
                known.changes(message.next, [])  # everything before it has been told
        assert (known.exact, known.keys) == (True, shard.truth())
        feed.close()

    run(scenario)


def test_two_listeners_both_know() -> None:
    async def scenario(shard: Shard, address: Address) -> None:
        first = await listen(address)
        await shard.work(50)
        second = await listen(address)
        await shard.work(50)
        await wait_for(lambda: first.blocks == second.blocks == shard.truth())

    run(scenario)


def test_those_who_listen_and_those_who_come_know_what_adapters_are_loaded() -> None:
    async def scenario(shard: Shard, address: Address) -> None:
        first = await listen(address)
        await wait_for(lambda: first.router.shards["a"].blocks.exact)
        shard.engine.add(Request(request_id="1", prompt_token_ids=[1], adapter=Adapter("x", "digest", "")))
        while shard.engine.has_work:
            shard.engine.step()
        second = await listen(address)
        loaded = shard.engine.adapters.loaded
        assert (loaded.digests, loaded.seconds < LoadedAdapters().seconds) == (("digest",), True)
        for here in (first, second):
            known = here.router.shards["a"]
            await wait_for(lambda known=known: known.adapters == {"digest"})  # type: ignore[misc]
            assert known.adapter_seconds == loaded.seconds

    run(scenario)


def test_a_listener_that_starts_again_knows_again() -> None:
    async def scenario(shard: Shard, address: Address) -> None:
        await shard.work(500)
        for _ in range(3):
            here = await listen(address)
            await wait_for(lambda here=here: here.blocks == shard.truth())  # type: ignore[misc]
            assert not here.is_stale()
            here.link.close()

    run(scenario)


def test_the_load_and_tickets_arrive() -> None:
    async def scenario(shard: Shard, address: Address) -> None:
        here = await listen(address)
        await wait_for(lambda: here.router.shards["a"].state is not None)
        here.router.route("mine", [], Query(160), ["a"], time.monotonic())
        assert here.router.shards["a"].tokens == 160
        await shard.work(20, ticket="mine")

        def counted() -> bool:
            here.router.route("other", [], Query(1), ["a"], time.monotonic())
            return here.router.shards["a"].tokens == 1

        await wait_for(counted)
        state = here.router.shards["a"].state
        assert state is not None
        assert state.blocks == 20_000

    run(scenario)


def test_what_is_beyond_the_limit_is_left_out() -> None:
    async def scenario(shard: Shard, address: Address) -> None:
        await shard.work(50)
        here = await listen(address, capacity=100)
        await wait_for(lambda: here.router.shards["a"].blocks.exact)
        assert len(here.blocks) == 100
        assert here.blocks < shard.truth()

    run(scenario)


def test_a_wire_that_is_held_up_is_noticed_and_mended() -> None:
    async def scenario(shard: Shard, address: Address) -> None:
        async with Wire(address) as wire:
            here = await listen(wire.address)
            await shard.work(10)
            await wait_for(lambda: here.blocks == shard.truth() and not here.is_stale())
            wire.open.clear()
            await shard.work(2500)  # the pool is evicting by now
            await wait_for(here.is_stale)
            assert here.blocks != shard.truth()
            wire.open.set()
            await wait_for(lambda: here.blocks == shard.truth() and not here.is_stale())

    run(scenario)


def test_memory_for_a_listener_that_does_not_read_is_bounded() -> None:
    """What is more than is kept for it is lost, which it finds out; its connection stays."""

    async def scenario(shard: Shard, address: Address) -> None:
        async with Wire(address) as wire:
            here = await listen(wire.address)
            await wait_for(lambda: here.router.shards["a"].blocks.exact)
            wire.open.clear()
            (hearer,) = shard.port.peers
            log = shard.engine.pool.events
            for number in range(9000):
                log.append("stored", (number.to_bytes(16, "big") * 200,))  # 3 kB
                if number % 100 == 99:
                    shard.port.feed.flush()
                    await asyncio.sleep(0)
            assert hearer.unread < FEED_UNREAD + 400_000
            log.append("cleared")
            wire.open.set()
            blocks = here.router.shards["a"].blocks
            await wait_for(lambda: blocks.gaps > 0 and blocks.exact and here.blocks == shard.truth())
            assert here.link.gone is None

    run(scenario)


class Wire:
    """A TCP forwarder that can hold everything back."""

    def __init__(self, address: Address) -> None:
        self.target = address
        self.open = asyncio.Event()
        self.open.set()
        self.pumps: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Wire:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = Address("127.0.0.1", self.server.sockets[0].getsockname()[1], self.target.secret)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for pump in self.pumps:
            pump.cancel()
        await asyncio.gather(*self.pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self.target.host, self.target.port)
        for pump in (self._pump(reader, far_writer), self._pump(far_reader, writer)):
            self.pumps.append(asyncio.create_task(pump))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                while data := await reader.read(65536):
                    await self.open.wait()
                    writer.write(data)
                    await writer.drain()
            finally:
                writer.close()
