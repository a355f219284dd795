"""From gateway to shard and back, over real sockets: a model that only counts, shards that die as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from ray.exceptions import ActorUnavailableError

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.async_engine import AsyncEngine, Stream
from octavo.engine.engine import Engine
from octavo.errors import BadRequest, EngineDead
from octavo.rehearsal.simulated import Profile, SimulatedExecutor
from octavo.request import Placement, Request, SamplingParams, SequenceUpdate
from octavo_serve.gateway import shard_client
from octavo_serve.gateway.link import Link
from octavo_serve.gateway.shard_client import Failover, ShardClient, octavo_errors
from octavo_serve.ray_private import Replica
from octavo_serve.shard.port import Port
from octavo_serve.wire import channel
from octavo_serve.wire.channel import Address, Submit

NONCE_AND_PROOF = 4 + 64  # of the shard; it knows by then no more of the other side than that it speaks first


class Fleet:
    """Shards in this process, and a picker: always the one listed first of those that can be reached."""

    def __init__(self) -> None:
        self.profile = Profile("counting", Cost(5e-3, 0, 0, 0, 0), 1024, 2**24, 4096, ())
        self.config = EngineConfig(max_num_seqs=16)
        self.ports: list[Port] = []
        self.replicas: list[Replica] = []
        self.links: dict[str, Link] = {}
        self.running: Counter[str] = Counter()
        self.ran: list[bool] = []
        self.tell: Callable[[list[Replica]], None] = lambda replicas: None

    async def add(self) -> Port:
        executor = SimulatedExecutor(self.profile, self.config, range(1000), 1000)
        engine = Engine("counting", executor, self.config, end_token_ids=())
        port = Port(AsyncEngine(engine), str(len(self.ports) + 1), report_s=0.02)
        self.ports.append(port)
        address = await port.open("127.0.0.1")
        self.replicas.append(Replica(port.name, 8, address.as_metadata(), None))
        self.tell(list(self.replicas))
        return port

    @property
    def address(self) -> Address:
        return Address.of(self.replicas[0].metadata)

    def listed(self) -> None:
        pass

    async def anybody(self) -> None:
        while not self.links:
            await asyncio.sleep(0.01)

    def join(self, replica: Replica, link: Link) -> None:
        self.links[replica.name] = link

    def leave(self, name: str, link: Link | None = None) -> None:
        if link in (None, self.links.get(name)):
            self.links.pop(name, None)

    async def pick(self, request: Request) -> Pick:
        while not self.links:
            await asyncio.sleep(0.01)
        name = min(self.links)
        self.running[name] += 1
        return Pick(self, name, self.links[name], Placement(request.request_id, name, "load", 0, 0.0))

    async def close(self) -> None:
        pass

    def kill(self, port: Port) -> None:
        """As far as a gateway can tell."""
        assert port._server is not None
        port._server.close()
        for peer in list(port.peers):
            peer.abort()


class Pick:
    def __init__(self, fleet: Fleet, name: str, link: Link, placement: Placement) -> None:
        self.fleet, self.name, self.link, self.placement = fleet, name, link, placement

    def ended(self, *, ran: bool) -> None:
        self.fleet.running[self.name] -= 1
        self.fleet.ran.append(ran)

    def gone(self) -> None:
        self.fleet.leave(self.name, self.link)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def run(fleet: Fleet, scenario: Any, monkeypatch: pytest.MonkeyPatch, **failover: Any) -> list[str]:
    """Run a scenario with a client; afterwards nothing is left of any request anywhere. Returns the moves' reasons."""
    moves: list[str] = []

    async def main() -> None:
        limits = Failover(**{"timeout": 5.0, **failover})
        client = ShardClient(None, fleet, limits, moves.append)  # type: ignore[arg-type]
        fleet.tell = client.listed
        try:
            await scenario(client)
            await everything_is_free(fleet)
            assert client._runs == {}
            assert not any(fleet.running.values())
        finally:
            await client.close()
            assert fleet.links == {}
            for port in fleet.ports:
                await port.leave(0)
                port.engine.close()

    asyncio.run(main())
    return moves


async def everything_is_free(fleet: Fleet) -> None:
    async with asyncio.timeout(5):
        while any(port.engine.engine.pool.num_owned or port.engine._listeners for port in fleet.ports):
            await asyncio.sleep(0.01)


def request(name: str = "a", **params: Any) -> Request:
    prompt = [ord(char) for char in name] * 20
    return Request(request_id=name, prompt_token_ids=prompt, params=SamplingParams(**{"max_tokens": 40, **params}))


async def said(client: ShardClient, asked: Request, after: Any = None) -> dict[int, list[int]]:
    """The tokens of each sequence; `after[k]()` is called when k have come."""
    tokens: dict[int, list[int]] = {i: [] for i in range(asked.params.num_sequences)}
    due = dict(after or {})
    async for updates in client.generate(asked):
        for update in updates:
            tokens[update.index] += update.token_ids
        for count in [count for count in due if count <= len(tokens[0])]:
            due.pop(count)()
    return tokens


@contextlib.asynccontextmanager
async def reading(client: ShardClient, asked: Request) -> AsyncIterator[Any]:
    async with contextlib.aclosing(client.generate(asked)) as stream:
        yield stream


def test_who_does_not_read_holds_no_place_at_a_shard(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        await fleet.add()
        async with reading(client, request(max_tokens=9)) as stream:
            updates = list(await anext(stream))
            while any(fleet.running.values()) or client.num_running():
                await asyncio.sleep(0.01)
            assert fleet.ran == [True]
            updates += [update for more in [part async for part in stream] for update in more]
        assert sum(len(update.token_ids) for update in updates) == 9

    run(fleet, scenario, monkeypatch)


def test_a_request_goes_with_its_placement_and_its_senders_copy_stays_as_it_was(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: ShardClient) -> None:
        port = await fleet.add()
        port.feed.close()  # its next report would take the ticket
        asked = request()
        assert client.placement("a") is None
        async with reading(client, asked) as stream:
            await anext(stream)
            placement = client.placement("a")
            assert placement is not None
            assert (placement.ticket, placement.shard) == ("a", "1")
            assert list(port.engine.engine.tickets) == ["a"]
        assert asked.placement is None
        assert client.placement("a") is None
        assert fleet.ran == [True]

    run(fleet, scenario, monkeypatch)


def test_a_client_that_closes_lets_its_streams_end(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        await fleet.add()
        monkeypatch.setattr(shard_client, "CLOSING_SECONDS", 0.01)
        reader = asyncio.create_task(said(client, request()))
        await asyncio.sleep(0)
        await client.close()
        assert reader.done()
        assert len(reader.result()[0]) == 40
        assert fleet.links == {}

    run(fleet, scenario, monkeypatch)


@pytest.mark.parametrize("params", [{}, {"n": 3}], ids=str)
def test_a_stream_moves_without_a_gap_or_a_repeat(fleet: Fleet, params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        for _ in range(3):
            await fleet.add()
        unbroken = await said(client, request(**params))
        kills = {9: lambda: fleet.kill(fleet.ports[0]), 20: lambda: fleet.kill(fleet.ports[1])}
        assert await said(client, request(**params), kills) == unbroken
        assert all(len(tokens) == 40 for tokens in unbroken.values())

    assert run(fleet, scenario, monkeypatch) == ["lost", "lost"]


def test_a_stream_waits_for_a_shard_that_replaces_the_last(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        port = await fleet.add()
        unbroken = await said(client, request())
        reader = asyncio.create_task(said(client, request(), {5: lambda: fleet.kill(port)}))
        while fleet.links:
            await asyncio.sleep(0.01)
        fleet.replicas.clear()
        await fleet.add()
        assert await reader == unbroken

    assert run(fleet, scenario, monkeypatch) == ["lost"]


def test_without_a_shard_for_too_long_the_error_says_so(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        port = await fleet.add()
        with pytest.raises(EngineDead, match=r"no shard of this model was there for 0\.2 s"):
            await said(client, request(), {5: lambda: fleet.kill(port)})

    run(fleet, scenario, monkeypatch, timeout=0.2)


def test_a_request_that_kills_its_shards_is_given_up(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        ports = [await fleet.add() for _ in range(3)]
        kills = {5 * i + 5: lambda port=port: fleet.kill(port) for i, port in enumerate(ports)}
        with pytest.raises(EngineDead, match="2 shards died"):
            await said(client, request(), kills)

    assert run(fleet, scenario, monkeypatch, moves=1) == ["lost"]


def test_a_shard_that_leaves_hands_over_what_does_not_end_in_time(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: ShardClient) -> None:
        first = await fleet.add()
        await fleet.add()
        unbroken = await said(client, request("long", max_tokens=150))
        leaving: list[asyncio.Task[None]] = []
        leave = {5: lambda: leaving.append(asyncio.create_task(first.leave(0.3)))}
        long, short = await asyncio.gather(
            said(client, request("long", max_tokens=150), leave), said(client, request("short", max_tokens=20))
        )
        assert long == unbroken
        assert len(short[0]) == 20
        await leaving[0]

    assert run(fleet, scenario, monkeypatch, moves=0) == ["left"]  # the short one ended where it was


def test_a_shard_whose_engine_stops_is_left(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        first = await fleet.add()
        await fleet.add()
        unbroken = await said(client, request())

        def fail(batch: Any) -> Any:
            raise RuntimeError("a fault in the machine")

        def break_down() -> None:
            first.engine.engine.executor.launch = fail  # type: ignore[method-assign]

        assert await said(client, request(), {5: break_down}) == unbroken
        fleet.ports.remove(first)  # its engine has no state to look at
        await first.leave(0)

    assert run(fleet, scenario, monkeypatch) == ["lost"]


def test_a_link_that_is_cut_at_a_living_shard_comes_back(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """From either side, over and over, with one shard: every request is that of an unbroken run."""

    async def scenario(client: ShardClient) -> None:
        monkeypatch.setattr(shard_client, "FIRST_PAUSE", 0.01)
        monkeypatch.setattr(shard_client, "LAST_PAUSE", 0.02)
        port = await fleet.add()
        names = [f"r{i}" for i in range(4)]
        unbroken = [await said(client, request(name, max_tokens=100)) for name in names]
        readers = [asyncio.create_task(said(client, request(name, max_tokens=100))) for name in names]
        cuts = 0
        while not all(reader.done() for reader in readers):
            await asyncio.sleep(0.05)
            ours = [link._channel for link in fleet.links.values()]
            for end in ours if cuts % 2 else list(port.peers):
                end.abort()
                cuts += 1
        assert [await reader for reader in readers] == unbroken
        assert cuts > 3

    assert set(run(fleet, scenario, monkeypatch, moves=100)) == {"lost"}


def test_a_shard_of_another_model_is_asked_only_when_the_others_are_gone(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: ShardClient) -> None:
        monkeypatch.setattr(shard_client, "LAST_PAUSE", 0.1)
        old = await fleet.add()
        assert (await client.describe()).block_size == 16
        fleet.config = EngineConfig(max_num_seqs=16, block_size=32)
        await fleet.add()
        waiting = client.generate(request("made for the old one", max_tokens=2000))
        await anext(waiting)
        await asyncio.sleep(0.3)
        assert list(fleet.links) == ["1"]
        fleet.kill(old)
        with pytest.raises(EngineDead, match="replaced by another"):
            async for _ in waiting:
                pass
        assert (await client.describe()).block_size == 32
        assert len((await said(client, request()))[0]) == 40

    run(fleet, scenario, monkeypatch)


def test_a_shard_that_refuses_for_a_moment_is_asked_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        monkeypatch.setattr(shard_client, "BEAT_SECONDS", 0.05)
        port = await fleet.add()
        submit, refusals = port.engine.submit, iter(range(2))

        def sometimes(asked: Request, listener: Any) -> None:
            if next(refusals, None) is not None:
                raise EngineDead("a step takes longer than it should")
            submit(asked, listener)

        port.engine.submit = sometimes  # type: ignore[method-assign]
        assert len((await said(client, request()))[0]) == 40

    assert run(fleet, scenario, monkeypatch) == ["lost", "lost"]


def test_a_request_that_comes_again_before_its_old_connection_has_ended(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: ShardClient) -> None:
        port = await fleet.add()
        unbroken = await said(client, request())
        while not fleet.links:
            await asyncio.sleep(0.01)
        old = await Link.open(fleet.address, 10.0)
        assert old is not None
        old.submit(request(), Stream(asyncio.get_running_loop()))
        while not port.engine.engine.pool.num_owned:
            await asyncio.sleep(0.01)
        reader = asyncio.create_task(said(client, request(), {5: old.close}))
        assert await reader == unbroken

    assert run(fleet, scenario, monkeypatch) == []


def test_a_shard_that_falls_silent_is_left(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        first = await fleet.add()
        await fleet.add()
        unbroken = await said(client, request())

        def fall_silent() -> None:
            for peer in first.peers:
                monkeypatch.setattr(peer, "_write", lambda payload: None)

        assert await said(client, request(), {5: fall_silent}) == unbroken

    assert run(fleet, scenario, monkeypatch, silence=1.5) == ["lost"]


def test_a_gateway_that_was_stopped_itself_takes_no_shard_for_silent(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: ShardClient) -> None:
        await fleet.add()
        assert len((await said(client, request(), {5: lambda: time.sleep(2.5)}))[0]) == 40  # the whole loop
        await asyncio.sleep(0.5)
        assert list(fleet.links) == ["1"]

    assert run(fleet, scenario, monkeypatch, silence=1.0) == []


def test_a_client_that_leaves_ends_its_request_at_the_shard(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        port = await fleet.add()
        async with reading(client, request("left", n=2, max_tokens=2000)) as stream:
            await anext(stream)
            assert port.engine.engine.pool.num_owned
        await everything_is_free(fleet)
        waiting = asyncio.create_task(said(client, request("cancelled", max_tokens=2000)))
        while not port.engine.engine.pool.num_owned:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])

    run(fleet, scenario, monkeypatch)


def test_a_gateway_that_dies_leaves_nothing_at_the_shard(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        port = await fleet.add()
        reader = asyncio.create_task(said(client, request(max_tokens=2000)))
        while not port.engine.engine.pool.num_owned:
            await asyncio.sleep(0.01)
        (link,) = fleet.links.values()
        fleet.tell([])
        link._channel.abort()
        await everything_is_free(fleet)
        reader.cancel()
        await asyncio.wait([reader])

    run(fleet, scenario, monkeypatch)


def test_one_sequence_ends_early_and_stays_ended_on_the_next_shard(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: ShardClient) -> None:
        first = await fleet.add()
        await fleet.add()
        unbroken = await said(client, request(n=2, max_tokens=400))
        tokens: dict[int, list[int]] = {0: [], 1: []}
        aborted = killed = False
        async for updates in client.generate(request(n=2, max_tokens=400)):
            for update in updates:
                tokens[update.index] += update.token_ids
            if len(tokens[0]) >= 5 and not aborted:
                aborted = True
                await client.abort("a", 0)
            if len(tokens[1]) >= 100 and not killed:
                killed = True
                fleet.kill(first)
        assert tokens[1] == unbroken[1]
        assert tokens[0] == unbroken[0][: len(tokens[0])]
        assert len(tokens[0]) < 400

    assert run(fleet, scenario, monkeypatch) == ["lost"]


def test_what_a_shard_refuses_is_raised_as_it_was(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        await fleet.add()
        with pytest.raises(BadRequest, match="must be in") as caught:
            await said(client, request(stop_token_ids=[10**6]))
        assert caught.value.param == "stop_token_ids"
        assert fleet.ran == [False]

    assert run(fleet, scenario, monkeypatch) == []


def test_a_request_that_cannot_be_encoded_takes_no_place(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        await fleet.add()
        broken = request()
        broken.params.top_k = 2**70  # as validation never lets it through
        for _ in range(3):
            with pytest.raises(OverflowError):
                await said(client, broken)
        assert len((await said(client, request()))[0]) == 40
        (link,) = fleet.links.values()
        assert link.streams == {}

    assert run(fleet, scenario, monkeypatch) == []


def test_strangers_are_not_listened_to(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the secret nothing runs and nothing is kept: not a request, not an abort, not the length of a message."""

    async def ends(*sent: bytes) -> int:
        """Bytes that a connection that says this is told before it is ended."""
        reader, writer = await asyncio.open_connection(fleet.address.host, fleet.address.port)
        writer.write(b"".join(len(each).to_bytes(4, "big") + each for each in sent))
        try:
            return len(await asyncio.wait_for(reader.read(), 30))
        except ConnectionResetError:  # what it sent last was not even read
            return len(reader._buffer)  # type: ignore[attr-defined]
        finally:
            writer.close()

    async def scenario(client: ShardClient) -> None:
        port = await fleet.add()
        submit = msgspec.msgpack.encode(Submit(request("stranger")))
        secret = bytes.fromhex(fleet.address.secret)
        assert await ends(submit) == 0
        assert await ends(secret, submit) == NONCE_AND_PROOF
        assert await ends(bytes(32), submit) == NONCE_AND_PROOF
        assert await ends(bytes(32), bytes(32), submit) == NONCE_AND_PROOF
        assert await ends(secret[:-1], submit) == 0
        assert await ends(b"x" * 300_000) == 0
        assert len(port.peers) == 1  # the client
        assert not port.engine._listeners
        await said(client, request())

    assert run(fleet, scenario, monkeypatch) == []


def test_who_says_nothing_is_sent_away(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        monkeypatch.setattr(channel, "INTRODUCTION_SECONDS", 0.2)
        await fleet.add()
        reader, writer = await asyncio.open_connection(fleet.address.host, fleet.address.port)
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        await said(client, request(max_tokens=100))  # half a second: those that have said it stay

    assert run(fleet, scenario, monkeypatch) == []


def test_a_client_is_not_told_what_ray_says_of_a_lost_shard() -> None:
    with pytest.raises(EngineDead) as caught, octavo_errors():
        raise ActorUnavailableError("node 10.1.2.3 is gone", None)
    assert "10.1.2.3" not in str(caught.value)


@pytest.mark.parametrize("turns", range(5))
def test_a_shard_that_ends_as_serve_lists_it_no_more_is_not_looked_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """In Python 3.11 `asyncio.wait_for` loses a cancellation that comes in the turn in which its wait ends."""

    async def scenario(client: ShardClient) -> None:
        await fleet.add()
        await fleet.anybody()
        (keeping,) = client._keeping.values()
        (link,) = fleet.links.values()
        link._channel.abort()
        while not link.gone:
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        client.listed([])
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(60):
                await keeping
        assert keeping.done()

    run(fleet, scenario, monkeypatch)


def test_a_large_message_ends_no_connection(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log probabilities of a long prompt are one message, longer than what may wait for who does not read."""
    monkeypatch.setattr(channel, "MAX_UNREAD", 2**16)

    async def scenario(client: ShardClient) -> None:
        port = await fleet.add()
        await fleet.anybody()
        (link,) = fleet.links.values()
        stream = Stream(asyncio.get_running_loop())
        link.streams["large"] = stream
        for peer in port.peers:
            peer.send(channel.Step([SequenceUpdate("large", 0, list(range(2**22)))]))
        async with asyncio.timeout(60):
            (update,) = await stream.take()
        assert len(update.token_ids) == 2**22
        assert link.gone is None

    run(fleet, scenario, monkeypatch)


async def shard_of_a_gateway_that_does_not_read(fleet: Fleet) -> Port:
    port = await fleet.add()
    await fleet.anybody()
    (link,) = fleet.links.values()
    assert link._channel._transport is not None
    link._channel._transport.pause_reading()
    for peer in port.peers:
        peer.send(channel.Step([SequenceUpdate("large", 0, list(range(2**22)))]))
    return port


def test_a_shard_leaves_a_gateway_that_does_not_read(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        port = await shard_of_a_gateway_that_does_not_read(fleet)
        async with asyncio.timeout(60):
            await port.leave(0)
            while port.peers:
                await asyncio.sleep(0)

    run(fleet, scenario, monkeypatch, silence=1000.0)


def test_what_its_caller_has_ended_does_not_move(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: ShardClient) -> None:
        port = await fleet.add()
        stream = client.generate(request("a", n=2, max_tokens=1000))
        await anext(stream)
        waiting = asyncio.create_task(anext(stream, None))
        while not client._runs["a"].stream._ready._waiters:
            await asyncio.sleep(0)
        for index in range(2):
            await client.abort("a", index)
        fleet.kill(port)
        while await waiting is not None:
            waiting = asyncio.create_task(anext(stream, None))

    assert run(fleet, scenario, monkeypatch) == []


def test_a_gateway_that_reads_nothing_is_given_up(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_UNREAD", 2**16)
    monkeypatch.setattr(channel, "STUCK_SECONDS", 0.1)

    async def scenario(client: ShardClient) -> None:
        port = await shard_of_a_gateway_that_does_not_read(fleet)
        async with asyncio.timeout(60):
            while port.peers:  # its reports go on
                await asyncio.sleep(0.01)

    run(fleet, scenario, monkeypatch, silence=1000.0)
