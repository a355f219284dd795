from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from octavo.errors import BadRequest, ModelNotReady, UnknownModel
from octavo.request import Adapter
from octavo_serve.api.adapters import AdapterEntry
from octavo_serve.api.registry import MAX_WAITING_TOKENS, RETRY_AFTER, ModelEntry, Registry, choose
from octavo_serve.wire.messages import ModelInfo

INFO = ModelInfo("h", max_model_len=7, vocab_size=9, block_size=16)
TOKENIZER: Any = object()
CLIENT: Any = object()


def ready(name: str) -> ModelEntry:
    return ModelEntry(name, 1, CLIENT, False, TOKENIZER, INFO, 1)


@pytest.fixture
def registry() -> Registry:
    registry = Registry([ready("a"), ready("b"), ModelEntry("c", 2, CLIENT)])
    registry.aliases = {"one": {"a": 1.0}, "split": {"a": 3.0, "b": 1.0}, "canary": {"b": 1.0, "c": 9.0}}
    return registry


def served(registry: Registry, name: str | None, session: str = "") -> str:
    return asyncio.run(registry.served(name, session)).name


def test_names_and_aliases(registry: Registry) -> None:
    assert served(registry, "b") == "b"
    assert served(registry, "one") == "a"
    with pytest.raises(UnknownModel, match="'d' does not exist; served here: a, b, c, one, split, canary"):
        served(registry, "d")
    with pytest.raises(BadRequest, match="model is required; served here: a, b, c"):
        served(registry, None)
    assert served(Registry([ready("a")]), None) == "a"


def adapter(registry: Registry, name: str, parent: str) -> Adapter:
    found = Adapter(name, "d", "/p")
    registry.adapters.entries[name] = AdapterEntry(name, parent, "/p", adapter=found)
    return found


def test_a_wrong_name_is_not_answered_with_thousands(registry: Registry) -> None:
    for i in range(3000):
        adapter(registry, f"adapter {i}", "a")
    with pytest.raises(UnknownModel, match=r"served here: a, b, c, one, .*, adapter 13 and 2986 more$"):
        served(registry, "d")


def test_models_and_aliases_go_before_adapters_of_their_name(registry: Registry) -> None:
    for name in ("a", "one"):
        adapter(registry, name, "b")
        assert asyncio.run(registry.served(name)).adapter is None
        assert registry.find(name).name == "a"


def test_an_adapter_that_goes_while_a_request_waits_is_still_its_adapter(registry: Registry) -> None:
    async def load() -> Adapter | None:
        registry.wait = 60.0
        waiting = asyncio.create_task(registry.served("poet"))
        await asyncio.sleep(0)
        registry.adapters.unload("poet")
        registry.entries["c"].update(tokenizer=TOKENIZER, info=INFO, shards=1)
        return (await waiting).adapter

    assert adapter(registry, "poet", "c") == asyncio.run(load())


def test_a_weighted_alias_keeps_its_proportions_and_its_sessions(registry: Registry) -> None:
    chosen = Counter(served(registry, "split", f"session {i}") for i in range(2000))
    assert chosen["a"] / 2000 == pytest.approx(0.75, abs=0.03)
    assert [served(registry, "split", "mine") for _ in range(5)] == [served(registry, "split", "mine")] * 5
    assert {served(registry, "split") for _ in range(60)} == {"a", "b"}


def test_when_a_model_goes_only_its_sessions_move() -> None:
    three, two = {"a": 2.0, "b": 1.0, "c": 1.0}, {"a": 2.0, "b": 1.0}
    for i in range(500):
        before = choose(three, f"{i}")
        assert before == "c" or choose(two, f"{i}") == before


def test_a_canary_that_is_not_ready_gets_no_requests(registry: Registry) -> None:
    assert {served(registry, "canary", f"{i}") for i in range(50)} == {"b"}
    registry.entries["b"].update(shards=0, shard_error="gone")
    with pytest.raises(ModelNotReady, match="'c' is still loading"):
        served(registry, "canary")


def test_a_request_waits_for_a_model_that_loads(registry: Registry) -> None:
    async def load() -> str:
        registry.wait = 60.0
        waiting = asyncio.create_task(registry.served("c"))
        await asyncio.sleep(0.01)
        registry.entries["c"].update(tokenizer=TOKENIZER, info=INFO, shards=1)
        return (await waiting).name

    assert asyncio.run(load()) == "c"


def test_only_so_many_tokens_wait_for_a_model_that_loads(registry: Registry) -> None:
    async def flood() -> None:
        registry.wait = 60.0
        waiting = asyncio.create_task(registry.served("c", tokens=2 * MAX_WAITING_TOKENS))
        await asyncio.sleep(0)
        with pytest.raises(ModelNotReady, match="still loading") as error:
            async with asyncio.timeout(30):
                await registry.served("c", tokens=1)
        assert error.value.retry_after == RETRY_AFTER
        registry.entries["c"].update(tokenizer=TOKENIZER, info=INFO, shards=1)
        await waiting
        registry.entries["c"].update(shards=0)
        waiting = asyncio.create_task(registry.served("c", tokens=1))
        await asyncio.sleep(0)
        assert not waiting.done(), "nothing of the others is left"
        waiting.cancel()
        await asyncio.wait([waiting])

    asyncio.run(flood())


def test_a_model_that_takes_longer_than_a_request_may_wait_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    entry, loop = ModelEntry("c", 2, CLIENT), asyncio.new_event_loop()

    def refused(wait: float) -> float | None:
        with pytest.raises(ModelNotReady) as error:
            loop.run_until_complete(entry.served(wait))
        return error.value.retry_after

    assert refused(0.0) == RETRY_AFTER, "it has never loaded"
    clock[0] += 60
    assert refused(0.0) == 60, "as long again as it has taken"
    clock[0] += 40
    entry.update(tokenizer=TOKENIZER, info=INFO, shards=1)
    entry.update(shards=0)
    clock[0] += 20
    assert refused(30.0) == 80, "it took a hundred the last time"
    loop.close()


def test_a_request_that_waits_learns_of_a_failure(registry: Registry) -> None:
    async def fail() -> None:
        registry.wait = 60.0
        waiting = asyncio.create_task(registry.served("c"))
        await asyncio.sleep(0.01)
        registry.entries["c"].update(tokenizer_error="no model at '/x'")
        await waiting

    with pytest.raises(ModelNotReady, match="model 'c' has failed: no model at '/x'") as caught:
        asyncio.run(fail())
    assert caught.value.retry_after is None


def test_states() -> None:
    entry = ModelEntry("m", 1, CLIENT)
    assert (entry.status, entry.reason) == ("loading", "its tokenizer is being loaded")
    entry.update(tokenizer=TOKENIZER)
    assert (entry.status, entry.reason) == ("loading", "its shards are starting")
    entry.update(note="no room")
    assert (entry.status, entry.reason) == ("loading", "no room")
    entry.update(shard_error="bad weights")
    assert (entry.status, entry.reason) == ("failed", "bad weights")
    entry.update(info=INFO, shards=1)
    assert (entry.status, entry.reason) == ("ready", None)
    idle = ModelEntry("m", 1, CLIENT, on_demand=True, tokenizer=TOKENIZER)
    assert (idle.status, idle.reason) == ("ready", None)


def test_cards(registry: Registry) -> None:
    cards = {str(card["id"]): card for card in registry.cards()}
    assert list(cards) == ["a", "b", "c", "one", "split", "canary"]
    assert (cards["a"]["status"], cards["a"]["max_model_len"]) == ("ready", 7)
    assert (cards["c"]["status"], cards["c"]["max_model_len"]) == ("loading", None)
    assert cards["split"] == cards["a"] | {"id": "split", "alias_of": {"a": 3.0, "b": 1.0}}
    with pytest.raises(UnknownModel):
        registry.card("d")


def test_a_request_that_names_no_model_gets_the_only_one_that_can(registry: Registry) -> None:
    del registry.entries["c"]
    registry.entries["b"].info = ModelInfo("h", 7, 9, 16, ("embed",))
    assert registry.find(None, tasks=("generate",)).name == "a"
    assert registry.find(None, tasks=("embed", "classify")).name == "b"
    for tasks in ((), ("classify",), ("generate", "embed")):
        with pytest.raises(BadRequest, match="model is required"):
            registry.find(None, tasks=tasks)
    assert (registry.writes("a"), registry.writes("b"), registry.writes(None)) == (True, False, True)
    assert registry.writes("nobody")
