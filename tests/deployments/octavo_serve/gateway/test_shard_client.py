"""From gateway to shard and back, over real sockets: a model that only counts, shards that die as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from octavo.config import EngineConfig
from octavo.engine.served_engine import ServedEngine
from octavo.errors import BadRequest, EngineDead, OctavoError
from octavo.pooling import Pooling
from octavo.request import Request
from octavo_serve.gateway import shard_client
from octavo_serve.gateway.shard_client import octavo_errors
from octavo_serve.gateway.suspicion import CLEARED_WEIGHT


def test_who_does_not_read_holds_no_place_at_a_shard(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        async with fleet.reading(client, fleet.request(max_tokens=9)) as stream:
            updates = list(await anext(stream))
            while any(fleet.running.values()) or client.num_running():
                await asyncio.sleep(0.01)
            assert fleet.ran == [True]
            updates += [update for more in [part async for part in stream] for update in more]
        assert sum(len(update.token_ids) for update in updates) == 9

    fleet.run(scenario)


def test_a_request_goes_with_its_placement_and_its_senders_copy_stays_as_it_was(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        port.feed.close()  # its next report would take the ticket
        asked = fleet.request()
        assert client.placement("a") is None
        async with fleet.reading(client, asked) as stream:
            await anext(stream)
            placement = client.placement("a")
            assert placement is not None
            assert (placement.ticket, placement.shard) == ("a", "1")
            assert list(port.engine.engine.tickets) == ["a"]
        assert asked.placement is None
        assert client.placement("a") is None
        assert fleet.ran == [True]

    fleet.run(scenario)


def test_a_client_that_closes_lets_its_streams_end(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        monkeypatch.setattr(shard_client, "CLOSING_SECONDS", 0.01)
        reader = asyncio.create_task(fleet.said(client, fleet.request()))
        await asyncio.sleep(0)
        await client.close()
        assert reader.done()
        assert len(reader.result()[0]) == 40
        assert fleet.links == {}

    fleet.run(scenario)


@pytest.mark.parametrize("params", [{}, {"n": 3}], ids=str)
def test_a_stream_moves_without_a_gap_or_a_repeat(fleet: Any, params: Any) -> None:
    async def scenario(client: Any) -> None:
        for _ in range(3):
            await fleet.add()
        unbroken = await fleet.said(client, fleet.request(**params))
        kills = {9: lambda: fleet.kill(fleet.ports[0]), 20: lambda: fleet.kill(fleet.ports[1])}
        assert await fleet.said(client, fleet.request(**params), kills) == unbroken
        assert all(len(tokens) == 40 for tokens in unbroken.values())

    assert fleet.run(scenario) == ["lost", "lost"]


@pytest.mark.parametrize("name", ["latent", "delta", "space", "gemma3"])
def test_what_a_model_keeps_of_a_text_is_computed_again_elsewhere(fleet: Any, tiny_model: Any, name: str) -> None:
    """Latents, states and windows, at the third shard found in the cache, too."""
    config = EngineConfig(kv_cache_bytes=2**22, max_num_seqs=4, max_num_batched_tokens=32, threads=1, speculation=False)

    async def shard() -> Any:
        served = ServedEngine.load(str(tiny_model(name)), config)
        launch = served.engine.executor.launch

        def slowly(batch: Any) -> Any:  # so that there is something left to compute when the shard dies
            time.sleep(4e-3)
            return launch(batch)

        served.engine.executor.launch = slowly  # type: ignore[method-assign]
        return await fleet.add(served)

    async def scenario(client: Any) -> None:
        ports = [await shard() for _ in range(3)]
        asked = {"max_tokens": 50, "temperature": 0.8, "seed": 3, "ignore_eos": True}
        unbroken = await fleet.said(client, fleet.request("abc", **asked))
        kills = {9: lambda: fleet.kill(ports[0]), 31: lambda: fleet.kill(ports[1])}
        assert await fleet.said(client, fleet.request("abc", **asked), kills) == unbroken
        assert await fleet.said(client, fleet.request("abc", **asked)) == unbroken
        assert ports[2].engine.engine.pool.num_cached > 0

    assert fleet.run(scenario) == ["lost", "lost"]


def test_a_text_whose_shard_dies_gets_its_vector_from_another(fleet: Any) -> None:
    async def vector(client: Any, name: str) -> bytes:
        asked = Request(request_id=name, prompt_token_ids=[5, *range(900)] * 4, pooling=Pooling("embed"))
        async with fleet.reading(client, asked) as stream:
            said = [update async for updates in stream for update in updates]
        assert [(update.token_ids, update.finish_reason) for update in said] == [([], "stop")]
        return said[0].pooled

    async def scenario(client: Any) -> None:
        first = await fleet.add()
        assert first.model.tasks == ("generate", "embed")
        moved = asyncio.create_task(vector(client, "moved"))
        while not first.engine.engine.pool.num_owned:
            await asyncio.sleep(0.001)
        fleet.kill(first)
        await fleet.add()
        assert await moved == await vector(client, "unbroken")
        assert len(moved.result()) == 4 * first.model.pooling.dimensions

    assert fleet.run(scenario) == ["lost"]


def test_a_stream_waits_for_a_shard_that_replaces_the_last(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        unbroken = await fleet.said(client, fleet.request())
        reader = asyncio.create_task(fleet.said(client, fleet.request(), {5: lambda: fleet.kill(port)}))
        while fleet.links:
            await asyncio.sleep(0.01)
        fleet.replicas.clear()
        await fleet.add()
        assert await reader == unbroken

    assert fleet.run(scenario) == ["lost"]


def test_without_a_shard_for_too_long_the_error_says_so(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        with pytest.raises(EngineDead, match=r"no shard of this model was there for 0\.2 s"):
            await fleet.said(client, fleet.request(), {5: lambda: fleet.kill(port)})

    fleet.run(scenario, timeout=0.2)


def test_a_request_that_kills_its_shards_now_and_then_is_given_up(fleet: Any) -> None:
    """It passes its trials, each of which makes the death before it count a quarter."""

    async def scenario(client: Any) -> None:
        ports = [await fleet.add() for _ in range(CLEARED_WEIGHT + 1)]
        kills = {5 * i + 5: lambda port=port: fleet.kill(port) for i, port in enumerate(ports)}
        with pytest.raises(EngineDead, match="2 shards died"):
            await fleet.said(client, fleet.request(), kills)

    assert fleet.run(scenario, moves=1) == ["lost"] * CLEARED_WEIGHT


def test_a_shard_whose_engine_stops_is_left(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        first = await fleet.add()
        await fleet.add()
        unbroken = await fleet.said(client, fleet.request())

        def fail(batch: Any) -> Any:
            raise RuntimeError("a fault in the machine")

        def break_down() -> None:
            first.engine.engine.executor.launch = fail  # type: ignore[method-assign]

        assert await fleet.said(client, fleet.request(), {5: break_down}) == unbroken
        fleet.ports.remove(first)  # its engine has no state to look at
        await first.leave(0)

    assert fleet.run(scenario) == ["lost"]


def test_a_link_that_is_cut_at_a_living_shard_comes_back(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From either side, over and over, with one shard: every request is that of an unbroken run."""

    async def scenario(client: Any) -> None:
        monkeypatch.setattr(shard_client, "FIRST_PAUSE", 0.01)
        monkeypatch.setattr(shard_client, "LAST_PAUSE", 0.02)
        port = await fleet.add()
        names = [f"r{i}" for i in range(4)]
        unbroken = [await fleet.said(client, fleet.request(name, max_tokens=100)) for name in names]
        readers = [asyncio.create_task(fleet.said(client, fleet.request(name, max_tokens=100))) for name in names]
        cuts = 0
        while not all(reader.done() for reader in readers):
            await asyncio.sleep(0.05)
            ours = [link._channel for link in fleet.links.values()]
            for end in ours if cuts % 2 else list(port.peers):
                end.abort()
                cuts += 1
        assert [await reader for reader in readers] == unbroken
        assert cuts > 3

    assert set(fleet.run(scenario, moves=100)) == {"lost"}


def test_a_shard_of_another_model_is_asked_only_when_the_others_are_gone(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: Any) -> None:
        monkeypatch.setattr(shard_client, "LAST_PAUSE", 0.1)
        old = await fleet.add()
        assert (await client.describe()).block_size == 16
        fleet.config = EngineConfig(max_num_seqs=16, block_size=32, speculation=False)
        await fleet.add()
        waiting = client.generate(fleet.request("made for the old one", max_tokens=2000))
        await anext(waiting)
        await asyncio.sleep(0.3)
        assert list(fleet.links) == ["1"]
        fleet.kill(old)
        with pytest.raises(EngineDead, match="replaced by another"):
            async for _ in waiting:
                pass
        assert (await client.describe()).block_size == 32
        assert len((await fleet.said(client, fleet.request()))[0]) == 40

    fleet.run(scenario)


def test_a_shard_that_refuses_for_a_moment_is_asked_again(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Any) -> None:
        monkeypatch.setattr(shard_client, "BEAT_SECONDS", 0.05)
        port = await fleet.add()
        submit, refusals = port.engine.submit, iter(range(2))

        def sometimes(asked: Any, listener: Any) -> None:
            if next(refusals, None) is not None:
                raise EngineDead("a step takes longer than it should")
            submit(asked, listener)

        port.engine.submit = sometimes  # type: ignore[method-assign]
        assert len((await fleet.said(client, fleet.request()))[0]) == 40

    assert fleet.run(scenario) == ["refused", "refused"]


def test_a_client_that_leaves_ends_its_request_at_the_shard(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        async with fleet.reading(client, fleet.request("left", n=2, max_tokens=2000)) as stream:
            await anext(stream)
            assert port.engine.engine.pool.num_owned
        await fleet.everything_is_free()
        waiting = asyncio.create_task(fleet.said(client, fleet.request("cancelled", max_tokens=2000)))
        while not port.engine.engine.pool.num_owned:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])

    fleet.run(scenario)


def test_one_sequence_ends_early_and_stays_ended_on_the_next_shard(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        first = await fleet.add()
        await fleet.add()
        unbroken = await fleet.said(client, fleet.request(n=2, max_tokens=400))
        tokens: dict[int, list[int]] = {0: [], 1: []}
        aborted = killed = False
        async for updates in client.generate(fleet.request(n=2, max_tokens=400)):
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

    assert fleet.run(scenario) == ["lost"]


def test_what_a_shard_refuses_is_raised_as_it_was(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        with pytest.raises(BadRequest, match="must be in") as caught:
            await fleet.said(client, fleet.request(stop_token_ids=[10**6]))
        assert caught.value.param == "stop_token_ids"
        assert fleet.ran == [False]

    assert fleet.run(scenario) == []


def test_a_client_is_not_told_what_ray_says_of_a_lost_shard() -> None:
    with pytest.raises(EngineDead) as caught, octavo_errors():
        raise ActorUnavailableError("node 10.1.2.3 is gone", None)
    assert "10.1.2.3" not in str(caught.value)


@pytest.mark.parametrize("turns", range(5))
def test_a_shard_that_ends_as_serve_lists_it_no_more_is_not_looked_for(fleet: Any, turns: int) -> None:
    """In Python 3.11 `asyncio.wait_for` loses a cancellation that comes in the turn in which its wait ends."""

    async def scenario(client: Any) -> None:
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

    fleet.run(scenario)


def test_what_its_caller_has_ended_does_not_move(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        stream = client.generate(fleet.request("a", n=2, max_tokens=1000))
        await anext(stream)
        waiting = asyncio.create_task(anext(stream, None))
        while not client._runs["a"].stream._ready._waiters:
            await asyncio.sleep(0)
        for index in range(2):
            await client.abort("a", index)
        fleet.kill(port)
        while await waiting is not None:
            waiting = asyncio.create_task(anext(stream, None))

    assert fleet.run(scenario) == []


def poison_engine(port: Any, token: int) -> None:
    """Steps with this token end the engine, as a process that dies would."""
    executor = port.engine.engine.executor
    launch = executor.launch

    def look(batch: Any) -> Any:
        if token in batch.token_ids:
            raise EngineDead("the process is gone")
        return launch(batch)

    executor.launch = look


async def replaced(fleet: Any, token: int) -> None:
    """Shards that die are taken off the list and others come, as Serve does it."""
    while True:
        for port in list(fleet.ports):
            if not port.lives:
                fleet.ports.remove(port)
                fleet.replicas[:] = [replica for replica in fleet.replicas if replica.name != port.name]
                await port.leave(0)
                poison_engine(await fleet.add(), token)
        await asyncio.sleep(0.01)


def test_a_request_that_stops_engines_is_refused_by_name_and_costs_nobody_a_token(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(shard_client, "LAST_PAUSE", 0.02)

    async def scenario(client: Any) -> None:
        names = [f"r{i}" for i in range(6)]
        port = await fleet.add()
        unbroken = await asyncio.gather(*(fleet.said(client, fleet.request(name, max_tokens=200)) for name in names))
        said = {token for lines in unbroken for token in lines[0]}
        poison = next(token for token in range(200, 1000) if token not in said)
        poison_engine(port, poison)
        serve = asyncio.create_task(replaced(fleet, poison))
        readers = [asyncio.create_task(fleet.said(client, fleet.request(name, max_tokens=200))) for name in names]
        while client.num_running() != len(names):
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        bad = fleet.request("bad")
        bad.prompt_token_ids[-1] = poison
        with pytest.raises(OctavoError, match="request bad is refused"):
            await fleet.said(client, bad)
        assert [await reader for reader in readers] == unbroken
        serve.cancel()

    moves = fleet.run(scenario, moves=2, timeout=60.0)
    assert set(moves) <= {"lost", "refused"}


def test_a_shard_that_serve_ends_makes_nobody_suspected(fleet: Any) -> None:
    """Off the list while it answers, and killed later: with two such the only request there is not refused."""

    async def scenario(client: Any) -> None:
        ports = [await fleet.add() for _ in range(3)]
        unbroken = await fleet.said(client, fleet.request())

        def end(port: Any) -> None:
            fleet.replicas[:] = [replica for replica in fleet.replicas if replica.name != port.name]
            client.listed(list(fleet.replicas))
            asyncio.get_running_loop().call_later(0.01, fleet.kill, port)

        ends = {5: lambda: end(ports[0]), 15: lambda: end(ports[1])}
        seen = []

        async def look() -> None:
            while True:
                seen.extend(run.suspicion.alone for run in client._runs.values())
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        assert await fleet.said(client, fleet.request(), ends) == unbroken
        looking.cancel()
        assert not any(seen)

    assert fleet.run(scenario) == ["lost", "lost"]


def test_a_request_whose_caller_ends_it_while_its_shards_fate_is_unknown_waits_no_more(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        monkeypatch.setattr(client, "_certain", lambda run: 1)  # the loss of the first is enough

        async def unknown(address: Any) -> bool:
            return False

        monkeypatch.setattr(shard_client, "_nobody_listens", unknown)
        stream = client.generate(fleet.request("a", max_tokens=1000))
        await anext(stream)
        fleet.kill(port)
        rest = asyncio.create_task(anext(stream, None))
        while not client._runs["a"].suspicion.is_undecided(1):
            await asyncio.sleep(0.01)
        await client.abort("a", 0)
        while await rest is not None:
            rest = asyncio.create_task(anext(stream, None))

    assert fleet.run(scenario, timeout=3600.0) == []


def test_shards_are_told_of_each_other(fleet: Any) -> None:
    """Of those that give KV blocks, when one comes."""

    async def scenario(client: Any) -> None:
        heard: dict[str, list[Any]] = {}

        async def add() -> None:
            port = await fleet.add()
            port.introduced = heard.setdefault(port.name, []).append
            metadata = {**fleet.replicas[-1].metadata, "kv": ("here", int(port.name), "secret")}
            metadata["kv"] = dict(zip(("host", "port", "secret"), metadata["kv"], strict=True))
            fleet.replicas[-1] = replace(fleet.replicas[-1], metadata=metadata)
            fleet.tell(list(fleet.replicas))

        async def until(**ports: Any) -> None:
            wanted = {name[1:]: count for name, count in ports.items()}
            async with asyncio.timeout(30):
                while {name: [at.port for at in said[-1].values()] for name, said in heard.items() if said} != wanted:
                    await asyncio.sleep(0.01)

        await add()
        await until(_1=[1])
        await add()
        await until(_1=[1, 2], _2=[1, 2])
        fleet.tell(fleet.replicas[:1])
        await fleet.said(client, fleet.request("b"))
        assert [len(said) for said in heard.values()] == [2, 1]  # it can be asked for a while yet
        await fleet.said(client, fleet.request())

    fleet.run(scenario)


def test_who_leaves_has_an_heir_and_its_streams_take_their_blocks_along(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        ports, heirs = [], []
        for number in range(2):
            port = await fleet.add()
            port.inherits = lambda name, heir=port.name: heirs.append((name, heir))
            where = {"host": "here", "port": number, "secret": "secret"}
            fleet.replicas[-1] = replace(fleet.replicas[-1], metadata=fleet.replicas[-1].metadata | {"kv": where})
            ports.append(port)
        fleet.tell(list(fleet.replicas))
        while len(fleet.links) < 2:
            await asyncio.sleep(0.01)
        first, second = ports
        asked: list[Request] = []
        submit = second.engine.submit
        second.engine.submit = lambda request, listener: (asked.append(request), submit(request, listener))
        introduced: list[Any] = []
        second.introduced = introduced.append
        leaving: list[asyncio.Task[None]] = []

        def leave() -> None:
            fleet.tell(fleet.replicas[1:])
            leaving.append(asyncio.create_task(first.leave(0)))

        said = await fleet.said(client, fleet.request(), {5: leave})
        assert len(said[0]) == 40
        assert heirs == [("1", "2")]
        placement = asked[0].placement
        assert placement is not None
        assert (placement.shard, placement.peer) == ("2", "1")
        assert placement.peer_blocks > 1000
        await fleet.said(client, fleet.request("b"))
        assert asked[1].placement is not None
        assert asked[1].placement.peer == ""
        assert all("1" in addresses for addresses in introduced)  # it can be asked yet
        await leaving[0]

    assert fleet.run(scenario) == ["left"]
