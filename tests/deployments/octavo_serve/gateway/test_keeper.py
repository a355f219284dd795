"""Sleep and other weights under load, over real sockets with tiny models."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.block_hash import Origin, hash_chain
from octavo.config import EngineConfig
from octavo.engine import served_engine
from octavo.engine.served_engine import ServedEngine
from octavo.errors import BadRequest, EngineDead, ModelError, OctavoError
from octavo.request import Request, SamplingParams
from octavo_serve.gateway.keeper import Keeper
from octavo_serve.gateway.shard_client import ShardClient
from octavo_serve.wire.weights import decode_kept

PROMPT = list(range(30, 94))
KEY = "weights"
PATIENCE = 100.0  # s that a request waits while weights are loaded, on a machine that has other work


class Kept(dict[str, bytes]):
    """What is kept in the cluster."""

    def keeper(self, client: ShardClient, source: Path) -> Keeper:
        return Keeper(client, str(source), KEY, self.__setitem__, self.get)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_engine, "QUIET_SECONDS", 0.05)


@pytest.fixture
def model(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("llama3"), tmp_path / "model"))


@pytest.fixture
def other(model: Path, tmp_path: Path, other_weights: Callable[[Path], None]) -> Path:
    folder = Path(shutil.copytree(model, tmp_path / "other"))
    other_weights(folder)
    return folder


def load(source: Path) -> ServedEngine:
    return ServedEngine.load(str(source), EngineConfig(kv_cache_bytes=2**21))


def request(name: str, client: ShardClient, tokens: int = 24) -> Request:
    """As the gateway makes it of what it knows then."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    asked = Request(request_id=name, prompt_token_ids=[*PROMPT], params=params)
    if (info := client.info) is not None:
        root, _ = Origin.of(info.hash_name, None, "", PROMPT)
        asked.block_hashes = hash_chain(root, PROMPT, info.block_size)
    return asked


async def said(fleet: Any, client: ShardClient, name: str = "a", tokens: int = 24) -> tuple[int, ...]:
    return tuple((await fleet.said(client, request(name, client, tokens)))[0])


async def both(fleet: Any, client: ShardClient, keeper: Keeper, other: Path) -> set[tuple[int, ...]]:
    """What the weights at hand say, then what the others do, over and over meanwhile."""
    old = await said(fleet, client)
    found: list[tuple[int, ...]] = []
    over = asyncio.Event()

    async def ask(number: int) -> None:
        while not over.is_set():
            found.append(await said(fleet, client, f"{number} {len(found)}"))

    asking = [asyncio.create_task(ask(number)) for number in range(6)]
    while not found:
        await asyncio.sleep(0.01)
    await keeper.update(str(other))
    new = await said(fleet, client, "new")
    assert new != old
    over.set()
    await asyncio.gather(*asking)
    assert set(found) == {old, new}
    assert await said(fleet, client, "again") == new
    return {old, new}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("two", [True, False], ids=["beside", "in place"])
def test_no_request_fails_and_each_is_answered_by_one_set_of_weights(
    fleet: Any, model: Path, other: Path, shards: int, two: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_engine.Loading, "holds_two", two)
    kept = Kept()

    async def scenario(client: ShardClient) -> None:
        for _ in range(shards):
            await fleet.add(load(model))
        while len(client.links) < shards:
            await asyncio.sleep(0.01)
        keeper = kept.keeper(client, model)
        assert len(await both(fleet, client, keeper, other)) == 2
        assert decode_kept(kept[KEY], str(model)).path == str(other)
        assert client.info is not None
        assert client.info.hash_name.startswith(f"{other}#weights=")
        await asyncio.sleep(0.05)
        assert len(fleet.links) == shards
        assert len(await both(fleet, client, keeper, model)) == 2
        assert client.info.hash_name == str(model)

    fleet.run(scenario, timeout=PATIENCE)


def test_a_request_that_was_hashed_for_the_old_weights_is_hashed_anew(fleet: Any, model: Path, other: Path) -> None:
    async def scenario(client: ShardClient) -> None:
        port = await fleet.add(load(model))
        old = await said(fleet, client)
        late = request("late", client)
        await Kept().keeper(client, model).update(str(other))
        tokens = tuple((await fleet.said(client, late))[0])
        assert tokens == await said(fleet, client, "new") != old
        published = set(port.engine.engine.pool.snapshot()[1])
        assert published.isdisjoint(late.block_hashes or ())
        assert published

    fleet.run(scenario, timeout=PATIENCE)


def test_a_stream_whose_shard_dies_does_not_go_on_with_other_weights(fleet: Any, model: Path, other: Path) -> None:
    """One of the old weights' shards takes it; without one it is told so."""

    async def scenario(client: ShardClient) -> None:
        first, _ = await fleet.add(load(model)), await fleet.add(load(other))
        asked = request("long", client, 400)

        def kill() -> None:
            fleet.kill(first)
            fleet.replicas.pop(0)
            fleet.tell(list(fleet.replicas))

        with pytest.raises(EngineDead, match="replaced by another while this request ran"):
            await fleet.said(client, asked, {5: kill})

    fleet.run(scenario)


def test_a_model_that_sleeps_ends_what_was_accepted_and_wakes_up(fleet: Any, model: Path) -> None:
    kept = Kept()

    async def scenario(client: ShardClient) -> None:
        for _ in range(2):
            await fleet.add(load(model))
        unbroken = await said(fleet, client, tokens=300)
        while len(client.links) < 2:
            await asyncio.sleep(0.01)
        keeper, changes = kept.keeper(client, model), list[int]()
        client.on_change = lambda: changes.append(client.asleep)
        long = asyncio.create_task(said(fleet, client, "long", 300))
        while not fleet.running["1"]:
            await asyncio.sleep(0)
        await keeper.sleep(1)
        assert await long == unbroken
        assert (client.asleep, fleet.links) == (1, {})
        assert decode_kept(kept[KEY], str(model)).level == 1
        waits = asyncio.create_task(said(fleet, client, "accepted before", 300))
        await asyncio.sleep(0.05)
        await keeper.wake_up()
        assert await waits == unbroken
        assert (client.asleep, changes[-1]) == (0, 0)
        assert decode_kept(kept[KEY], str(model)).level == 0

    fleet.run(scenario, timeout=PATIENCE)


def test_where_one_shard_refuses_nothing_changes(fleet: Any, model: Path, other: Path, tiny_model: Any) -> None:
    kept = Kept()

    async def scenario(client: ShardClient) -> None:
        ports = [await fleet.add(load(model)) for _ in range(2)]
        old = await said(fleet, client)
        while len(client.links) < 2:
            await asyncio.sleep(0.01)
        keeper = kept.keeper(client, model)
        with pytest.raises(BadRequest, match="same architecture"):
            await keeper.update(str(tiny_model("qwen3")))
        (other / "model.safetensors").write_bytes(b"")
        with pytest.raises(OctavoError):
            await keeper.update(str(other))
        assert [port.engine._staged for port in ports] == [None, None]
        assert await said(fleet, client) == old
        assert KEY not in kept

    fleet.run(scenario, timeout=PATIENCE)


@pytest.mark.parametrize("shards", [1, 4])
def test_where_one_of_the_first_shards_fails_all_go_back(
    fleet: Any, model: Path, other: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    kept = Kept()

    async def scenario(client: ShardClient) -> None:
        ports = [await fleet.add(load(model)) for _ in range(shards)]
        old = await said(fleet, client)
        while len(client.links) < shards:
            await asyncio.sleep(0.01)

        def fail() -> None:
            raise ModelError("no memory")

        monkeypatch.setattr(ports[shards // 4].engine, "_switch", fail)
        with pytest.raises(ModelError, match="no memory"):
            await kept.keeper(client, model).update(str(other))
        assert {port.engine.name for port in ports} == {str(model)}
        assert await said(fleet, client) == old
        assert decode_kept(kept[KEY], str(model)).path == ""

    fleet.run(scenario, timeout=PATIENCE)


def test_without_shards_there_is_nothing_to_do(fleet: Any, model: Path) -> None:
    async def scenario(client: ShardClient) -> None:
        keeper = Kept().keeper(client, model)
        for doing in (keeper.sleep(1), keeper.wake_up(), keeper.update("/")):
            with pytest.raises(BadRequest, match="no shard of this model is there"):
                await doing

    fleet.run(scenario)
