"""The adapter's rules, on a router that no cluster feeds: never empty, never raising, bursts spread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.request import Request, SamplingParams
from octavo_serve.prefix_router import PrefixRouter
from octavo_serve.telemetry import Telemetry


@pytest.fixture
def router() -> Iterator[Callable[..., PrefixRouter]]:
    made: list[PrefixRouter] = []

    def start(**settings: Any) -> PrefixRouter:
        made.append(PrefixRouter.__new__(PrefixRouter))  # Serve's own constructor needs a cluster
        made[-1].initialize_state(**settings)
        return made[-1]

    yield start
    for each in made:
        each.feed.close()


def replica(name: str, metadata: dict[str, Any] | None = None) -> Any:
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), replica_metadata=metadata or {})


def pending(request_id: str, chain: list[bytes] | None = None, n: int = 1, session: str = "") -> Any:
    request = Request(
        request_id=request_id,
        prompt_token_ids=[1] * 100,
        params=SamplingParams(n=n),
        block_hashes=chain,
        session=session,
    )
    return SimpleNamespace(
        args=[request],
        metadata=SimpleNamespace(internal_request_id=request_id),
        routing_context=SimpleNamespace(should_backoff=False),
    )


def ranks(made: PrefixRouter, replicas: list[Any], request: Any) -> list[list[str]]:
    found = asyncio.run(made.choose_replicas(replicas, request))
    return [[each.replica_id.unique_id for each in rank] for rank in found]


ABC = [replica(name) for name in "abc"]


def test_every_replica_is_ranked_and_retries_back_off(router: Callable[..., PrefixRouter]) -> None:
    request = pending("1")
    assert sorted(ranks(router(), ABC, request)) == [["a"], ["b"], ["c"]]
    assert request.routing_context.should_backoff


def test_what_was_decided_is_written_on_the_request(router: Callable[..., PrefixRouter]) -> None:
    request = pending("1", [b"x"])
    (first, *_) = ranks(router(), ABC, request)
    placement = request.args[0].placement
    assert [placement.shard] == first
    assert (placement.ticket, placement.reason, placement.cached_tokens) == ("1", "load", 0)
    assert placement.first_token > 0


def test_a_prefix_returns_to_its_shard(router: Callable[..., PrefixRouter]) -> None:
    made = router()
    first = ranks(made, ABC, pending("1", [b"x", b"y"]))[0]
    made.on_request_completed(SimpleNamespace(unique_id=first[0]), "1")
    for number in range(5):
        assert ranks(made, ABC, pending(f"again {number}", [b"x", b"y", b"z"]))[0] == first
        made.on_request_completed(SimpleNamespace(unique_id=first[0]), f"again {number}")
        assert sum(shard.in_flight for shard in made.router.shards.values()) == 0


def test_a_burst_is_spread_before_any_replica_has_answered(router: Callable[..., PrefixRouter]) -> None:
    made, replicas = router(), [replica("a"), replica("b")]
    found = [ranks(made, replicas, pending(str(number), [bytes([number])]))[0][0] for number in range(10)]
    assert sorted(found) == ["a"] * 5 + ["b"] * 5


def test_policies_are_chosen_by_name(router: Callable[..., PrefixRouter]) -> None:
    made = router(policy="session")
    homes = {ranks(made, ABC, pending(str(number), session="alice"))[0][0] for number in range(10)}
    assert len(homes) == 1
    turns = router(policy="round_robin")
    assert len({ranks(turns, ABC, pending(str(number)))[0][0] for number in range(3)}) == 3


def test_a_request_that_went_elsewhere_says_so(router: Callable[..., PrefixRouter]) -> None:
    made, request = router(), pending("1", [b"x"])
    (best,), (second,), _ = ranks(made, ABC, request)
    made.on_request_routed(request, SimpleNamespace(unique_id=second), None)
    assert request.args[0].placement.shard == second
    ranks(made, ABC, pending("2"))
    assert made.router.shards[best].tokens < 150  # the first request's hundred tokens are not there


def test_a_call_without_a_request_goes_anywhere(router: Callable[..., PrefixRouter]) -> None:
    call = pending("1")
    call.args = []
    assert ranks(router(), ABC, call) == [["a", "b", "c"]]
    assert call.routing_context.should_backoff
    assert ranks(router(), ABC, None) == [["a", "b", "c"]]


def test_an_error_still_names_replicas(router: Callable[..., PrefixRouter], caplog: pytest.LogCaptureFixture) -> None:
    made = router()
    made.router.config = None  # type: ignore[assignment]
    assert ranks(made, ABC, pending("1")) == [["a", "b", "c"]]
    assert "any replica will do" in caplog.text


def test_shards_come_and_go(router: Callable[..., PrefixRouter]) -> None:
    made = router()
    with_feed = {name: replica(name, {"feed": "tcp://127.0.0.1:1"}) for name in "abc"}
    made._follow([with_feed["a"], with_feed["b"]])
    made._follow([with_feed["b"], with_feed["c"]])
    assert set(made.router.shards) == made.followed == {"b", "c"}


def test_unknown_settings_are_named(router: Callable[..., PrefixRouter], caplog: pytest.LogCaptureFixture) -> None:
    router(polizy="session")
    assert "did you mean 'policy'" in caplog.text


def test_metrics_show_every_router(router: Callable[..., PrefixRouter]) -> None:
    made = router(model="tiny")
    ranks(made, ABC, pending("1", [b"x"]))
    text = Telemetry().render({}).decode()
    assert 'reason="load"' in text
    assert 'octavo:router_index_blocks{engine="a",model_name="tiny"} 0.0' in text
    assert 'octavo:router_stale{engine="a",model_name="tiny"} 0.0' in text
