"""The feed over real sockets: an engine in this process, routers that listen, a wire that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.engine import Engine
from octavo.execution.simulated import Profile, SimulatedExecutor
from octavo.request import Placement, Request, SamplingParams
from octavo.routing.policy import Query
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.feed import HIGH_WATER, LARGEST_HELLO, PART, FeedPublisher, FeedSubscriber, Hello, _encode

MACHINE = Profile("test", Cost(1e-3, 1e-6, 0, 0, 0), 1, 16 * 20_000, 8192, ())


class Shard:
    """An engine and its feed; `work` runs requests until their blocks are published, in this thread."""

    def __init__(self, name: str = "a") -> None:
        config = EngineConfig(max_num_batched_tokens=4096)
        executor = SimulatedExecutor(MACHINE, config, range(1000), 1000, sleep=lambda _: None)
        self.name, self.engine = name, Engine("m", executor, config, ())
        self.feed = FeedPublisher(name, self.engine, "127.0.0.1", report_s=0.02)
        self.number = 0

    def work(self, requests: int, tokens: int = 160, ticket: str = "") -> None:
        drawn = random.Random(self.number)
        for _ in range(requests):
            self.number += 1
            prompt = [drawn.randrange(1000) for _ in range(tokens)]
            request = Request(
                request_id=str(self.number), prompt_token_ids=prompt, params=SamplingParams(max_tokens=1)
            )  # fmt: skip
            request.placement = Placement(ticket or str(self.number), self.name, "load", 0, 0.0)
            self.engine.add(request)
            while self.engine.has_work:
                self.engine.step()

    def truth(self) -> set[bytes]:
        return set(self.engine.pool.snapshot()[1])


class Listener:
    """A router and its end of the feed."""

    def __init__(self, *shards: tuple[str, str], capacity: int = 500_000) -> None:
        self.router = Router(RoutingConfig(max_blocks_per_shard=capacity, stale_after_s=0.6))
        self.feed = FeedSubscriber(self.router)
        for name, address in shards:
            self.router.join(name, time.monotonic())
            self.feed.listen(name, address)

    def blocks(self, name: str = "a") -> set[bytes]:
        return self.router.shards[name].blocks.hashes

    def is_stale(self, name: str = "a") -> bool:
        self.router.route("look", [], Query(1), [name], time.monotonic())
        return self.router.shards[name].stale


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.005)
    return time.monotonic() - start


@pytest.fixture
def shard() -> Iterator[Shard]:
    made = Shard()
    yield made
    made.feed.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def start(*shards: tuple[str, str], **settings: int) -> Listener:
        made.append(Listener(*shards, **settings))
        return made[-1]

    yield start
    for listener in made:
        listener.feed.close()


def test_a_listener_that_comes_late_gets_everything(shard: Shard, listen: Callable[..., Listener]) -> None:
    shard.work(900)  # 9,000 blocks: a snapshot in parts
    assert len(shard.truth()) > 2 * PART
    here = listen(("a", shard.feed.address))
    wait_for(lambda: here.blocks() == shard.truth())
    assert here.router.shards["a"].blocks.snapshots == 1


def test_events_follow_through_evictions(shard: Shard, listen: Callable[..., Listener]) -> None:
    here = listen(("a", shard.feed.address))
    wait_for(lambda: here.router.shards["a"].blocks.exact)
    shard.work(3000)  # 30,000 blocks through a pool of 20,000
    shard.engine.pool.clear_cache()
    shard.work(10)
    wait_for(lambda: here.blocks() == shard.truth())


def test_two_listeners_both_know(shard: Shard, listen: Callable[..., Listener]) -> None:
    first = listen(("a", shard.feed.address))
    shard.work(50)
    second = listen(("a", shard.feed.address))
    shard.work(50)
    wait_for(lambda: first.blocks() == second.blocks() == shard.truth())


def test_a_listener_that_starts_again_knows_again(shard: Shard, listen: Callable[..., Listener]) -> None:
    shard.work(500)
    for _ in range(3):
        here = listen(("a", shard.feed.address))
        wait_for(lambda here=here: here.blocks() == shard.truth())
        assert not here.is_stale()
        here.feed.leave("a")


def test_the_load_and_tickets_arrive(shard: Shard, listen: Callable[..., Listener]) -> None:
    here = listen(("a", shard.feed.address))
    wait_for(lambda: here.router.shards["a"].state is not None)
    here.router.route("mine", [], Query(160), ["a"], time.monotonic())
    assert here.router.shards["a"].tokens == 160
    shard.work(20, ticket="mine")

    def counted() -> bool:
        here.router.route("other", [], Query(1), ["a"], time.monotonic())
        return here.router.shards["a"].tokens == 1

    wait_for(counted)
    state = here.router.shards["a"].state
    assert state is not None
    assert state.blocks == 20_000


def test_an_address_with_a_new_owner_is_not_mistaken(listen: Callable[..., Listener]) -> None:
    other = Shard("b")
    try:
        other.work(10)
        here = listen(("a", other.feed.address), ("b", other.feed.address))
        wait_for(lambda: here.blocks("b") == other.truth())
        assert here.blocks("a") == set()
        assert here.router.shards["a"].state is None
    finally:
        other.feed.close()


def test_strangers_on_the_socket_do_no_harm(shard: Shard, listen: Callable[..., Listener]) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(shard.feed.address.partition("#")[0])
        for message in (b"", b"\xff" * 100, b"\x93\xa1a\x01\xc3" * 3):
            socket.send(message)
        socket.send_multipart([b"a", b"b", b"c"])
        here = listen(("a", shard.feed.address))
        shard.work(10)
        wait_for(lambda: here.blocks() == shard.truth())


def test_who_does_not_know_the_secret_hears_nothing(shard: Shard, listen: Callable[..., Listener]) -> None:
    """Block hashes tell whether a known prompt is cached. Nor is more kept than a hello can be long."""
    import zmq

    endpoint, _, secret = shard.feed.address.partition("#")
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        for guess in ("", "00" * 32, secret[:-1], secret.upper(), "ä"):
            socket.send(_encode(Hello("a", 0.0, True, guess)))
        socket.send(_encode(["a", 0.0, True]))
        friend = listen(("a", shard.feed.address))
        shard.work(5)
        wait_for(lambda: friend.blocks() == shard.truth() != set())
        assert list(shard.feed._peers) != []
        assert socket.poll(300) == 0
        socket.send(_encode(Hello("a", 0.0, True, secret)))
        assert socket.poll(30_000)
        with socket.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            socket.send(_encode(Hello("a" * (LARGEST_HELLO + 1), 0.0, True, secret)))
            assert monitor.poll(30_000)
            socket.disable_monitor()


def test_what_is_beyond_the_limit_is_left_out(shard: Shard, listen: Callable[..., Listener]) -> None:
    shard.work(50)
    here = listen(("a", shard.feed.address), capacity=100)
    wait_for(lambda: here.router.shards["a"].blocks.exact)
    assert len(here.blocks()) == 100
    assert here.blocks() < shard.truth()


def test_a_cut_wire_is_noticed_and_mended(shard: Shard, listen: Callable[..., Listener]) -> None:
    with Wire(shard.feed.address) as wire:
        here = listen(("a", wire.address))
        shard.work(10)
        wait_for(lambda: here.blocks() == shard.truth() and not here.is_stale())
        wire.held.clear()
        shard.work(2500)  # the pool is evicting by now
        wait_for(here.is_stale)
        assert here.blocks() != shard.truth()
        wire.held.set()
        wait_for(lambda: here.blocks() == shard.truth() and not here.is_stale())
        wire.drop()
        shard.work(100)  # nobody hears these
        wait_for(lambda: here.blocks() == shard.truth() and not here.is_stale())


def test_memory_for_a_listener_that_does_not_read_is_bounded(shard: Shard, listen: Callable[..., Listener]) -> None:
    """More messages than are kept for it are lost, which it finds out."""
    with Wire(shard.feed.address) as wire:
        here = listen(("a", wire.address))
        wait_for(lambda: here.router.shards["a"].blocks.exact)
        wire.held.clear()
        log = shard.engine.pool.events
        for number in range(3 * HIGH_WATER):
            log.append("stored", (number.to_bytes(16, "big") * 200,))  # 3 kB: more than any socket's buffers hold
            shard.feed._flush(report=False) if number % 1000 == 999 else time.sleep(0)
        log.append("cleared")
        wire.held.set()
        wait_for(lambda: here.blocks() == shard.truth())


class Wire:
    """A TCP forwarder that can hold everything back, or drop its connections."""

    def __init__(self, address: str) -> None:
        endpoint, _, self.secret = address.partition("#")
        self.target = int(endpoint.rpartition(":")[2])
        self.held = threading.Event()  # set: things pass
        self.held.set()
        self.loop = asyncio.new_event_loop()
        self.writers: list[asyncio.StreamWriter] = []
        self.thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> Wire:
        self.thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._accept, "127.0.0.1", 0), self.loop)
        self.server = server.result()
        self.address = f"tcp://127.0.0.1:{self.server.sockets[0].getsockname()[1]}#{self.secret}"
        return self

    def __exit__(self, *_: object) -> None:
        self.held.set()
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _stop(self) -> None:
        self.server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self.writers:
            writer.close()

    def drop(self) -> None:
        """Break every connection; whoever wants may connect again."""

        def close() -> None:
            for writer in self.writers:
                writer.transport.abort()
            self.writers.clear()

        self.loop.call_soon_threadsafe(close)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self.writers += [writer, far_writer]
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            while not self.held.is_set():
                await asyncio.sleep(0.01)
            writer.write(data)
            await writer.drain()
