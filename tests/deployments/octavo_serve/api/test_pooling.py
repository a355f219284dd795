"""Many texts of one request: refused together, run a bounded number at a time, counted once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.block_hash import hash_chain, root_hash
from octavo.errors import BadRequest, OctavoError, Overloaded, QuotaExceeded
from octavo.request import SequenceUpdate
from octavo_serve.api import pooling as module
from octavo_serve.api.bounds import MAX_TEXTS
from octavo_serve.api.pooling import Asking, Pooled, accepted, check_number, pooled
from octavo_serve.api.service import Service
from octavo_serve.api.tenants import Tenant
from octavo_serve.api.tracing import CURRENT, Trace


def run(service: Service, texts: Any, **fields: Any) -> Pooled:
    asking = Asking(**{"kind": "embd", "operation": "embeddings", "model": None, "param": "input", **fields})

    async def main() -> Pooled:
        async with accepted(service, asking, texts) as ready:
            encoded = await ready.encoded(texts)
        return await pooled(ready, encoded, "embed")

    return asyncio.run(main())


def test_values_are_in_order_and_counted(pooling: Service, pooler: Any) -> None:
    found = run(pooling, ["a", "b c", [5, 6, 7]], priority=3, session="s")
    assert found.values == [pooler.values(request).tobytes() for request in pooler.opened]
    assert found.prompt_tokens == 6
    assert {(one.priority, one.session) for one in pooler.opened} == {(3, "s")}
    tally = pooling.telemetry.tallies["tiny", "embeddings"]
    assert (tally.prompt_tokens, dict(tally.finished), tally.generation_tokens) == (6, {"stop": 3}, 0)
    times = tally.duration, tally.first_token, tally.each_token
    assert [each.cumulative(()) for each in times] == [[1], [0], [0]]


def test_a_tenant_pays_for_all_texts_at_once(pooling: Service, pooler: Any) -> None:
    tenant = Tenant("acme", 2.0, requests_per_minute=3, tokens_per_minute=10, cache_share=0.5)
    run(pooling, ["a", "b c", [5, 6, 7]], tenant=tenant)
    assert {(one.tenant, one.weight, one.cache_share) for one in pooler.opened} == {("acme", 2.0, 0.5)}
    with pytest.raises(QuotaExceeded, match="may use 10 tokens in a minute, has used 6, and this takes 5"):
        run(pooling, [[5, 6, 7, 8, 9]], tenant=tenant)
    pooler.error = 5, OctavoError("broken")
    with pytest.raises(OctavoError, match="broken"):
        run(pooling, [[5]], tenant=tenant)
    used = pooling.telemetry.ledger.usage["acme", "tiny"]
    assert (used.requests, used.prompt_tokens, used.completion_tokens) == (2, 6, 0)
    assert [left.remaining for left in pooling.telemetry.ledger.quotas.standing(tenant)] == [1, 3]
    with pytest.raises(BadRequest, match="prompt has 11 tokens"):
        run(pooling, [list(range(11))], tenant=tenant)


def test_only_a_model_that_caches_gets_hashes(pooling: Service, pooler: Any) -> None:
    ids = list(range(40))
    run(pooling, [ids])
    assert pooler.opened[0].block_hashes == []
    pooler.becomes("generate", "embed")
    run(pooling, [ids], cache_salt="x")
    assert pooler.opened[1].block_hashes == hash_chain(root_hash("pooled", salt="x"), ids, 16)


def test_many_texts_are_encoded_in_slices_by_a_thread(
    pooling: Service, pooler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONG", 10)
    monkeypatch.setattr(module, "SLICE", 12)
    texts = ["Hello there"] * 5 + ["one", "two", "three", ""]
    with pytest.raises(BadRequest, match=r"input\[8\] must not be an empty text"):
        run(pooling, texts)
    assert pooler.opened == []
    run(pooling, texts[:-1])
    assert pooler.texts() == texts[:-1]


def test_what_does_not_come_in(pooling: Service, pooler: Any) -> None:
    pooler.full = Overloaded("full", 1.0)
    with pytest.raises(Overloaded):
        run(pooling, ["a"])
    pooler.full = None
    pooling.lateness.seconds = 1.0
    with pytest.raises(Overloaded, match="more requests come than this gateway can read"):
        run(pooling, ["a"])
    for count, sentence in ((0, "input must not be empty"), (MAX_TEXTS + 1, "one request may hold 10000")):
        with pytest.raises(BadRequest, match=sentence):
            check_number(count, "input")
    check_number(MAX_TEXTS, "input")


def test_an_engines_error_is_raised(pooling: Service, pooler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(request: Any) -> SequenceUpdate:
        return SequenceUpdate(request.request_id, 0, [], finish_reason="error", stop_reason="not a number")

    monkeypatch.setattr(pooler, "_update", failed)
    with pytest.raises(Exception, match="not a number"):
        run(pooling, ["a", "b"])
    monkeypatch.setattr(pooler, "_update", lambda request: SequenceUpdate(request.request_id, 0, []))
    with pytest.raises(Exception, match="stream ended before"):
        run(pooling, ["a"])


def test_texts_that_are_held_are_bounded(pooling: Service, pooler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HELD", 20_000)
    monkeypatch.setattr(module, "LONG", 100)
    texts, held = [list(range(50))] * 300, list[int]()
    whole = pooler.generate

    def generate(request: Any) -> Any:
        held.append(pooling.held_texts)
        return whole(request)

    monkeypatch.setattr(pooler, "generate", generate)
    run(pooling, texts)
    assert (set(held), pooling.held_texts) == ({4 * 300 * 50}, 0)
    pooling.held_texts = 10_000
    with pytest.raises(Overloaded, match="more texts are being worked on here than fit"):
        run(pooling, texts)
    run(pooling, ["a"])  # few are no burden
    assert pooling.held_texts == 10_000


def test_requests_share_the_places_of_their_model(
    pooling: Service, pooler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOWS", 40)
    pooler.turns = 200
    asking = Asking(kind="embd", operation="embeddings", model=None, param="input")

    async def one(texts: Any) -> Pooled:
        async with accepted(pooling, asking, texts) as ready:
            encoded = await ready.encoded(texts)
        return await pooled(ready, encoded, "embed")

    async def main() -> None:
        large = [asyncio.create_task(one(["a"] * 5000)) for _ in range(3)]
        while pooler.running < 40:
            await asyncio.sleep(0)
        await one(["b"])  # takes its turn among the others
        for task in large:
            assert not task.done()
            task.cancel()
        await asyncio.wait(large)
        assert pooler.most == 40
        assert pooling.windows["tiny"]._value == 40  # whatever had begun or not

    asyncio.run(main())


def test_a_traced_request_says_what_it_is(pooling: Service) -> None:
    trace = Trace("POST /v1/embeddings", ("1", "2"), None)
    token = CURRENT.set(trace)
    try:
        found = run(pooling, ["a", "b c"])
    finally:
        CURRENT.reset(token)
    told = {name.removeprefix("gen_ai."): value for name, value in trace.attributes.items()}
    assert (told["operation.name"], told["response.model"]) == ("embeddings", "tiny")
    assert (told["response.id"], told["usage.input_tokens"]) == (found.id, 3)
