"""The adapter's rules, on a router that no cluster feeds: never empty, never raising, bursts spread."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.request import Request, SamplingParams
from octavo_serve.prefix_router import UNCONFIRMED_SECONDS, InFlight, PrefixRouter


def router(**settings: int) -> PrefixRouter:
    made = PrefixRouter.__new__(PrefixRouter)  # Serve's own constructor needs a cluster
    made.initialize_state(**settings)
    return made


def replica(name: str, sequences: int = 0) -> Any:
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats={"sequences": sequences})


def pending(request_id: str, chain: list[bytes] | None = None, n: int = 1) -> Any:
    request = Request(request_id=request_id, prompt_token_ids=[1], params=SamplingParams(n=n), block_hashes=chain)
    return SimpleNamespace(
        args=[request],
        metadata=SimpleNamespace(internal_request_id=request_id),
        routing_context=SimpleNamespace(should_backoff=False),
    )


def ranks(made: PrefixRouter, replicas: list[Any], request: Any) -> list[list[str]]:
    found = asyncio.run(made.choose_replicas(replicas, request))
    return [[each.replica_id.unique_id for each in rank] for rank in found]


def test_every_replica_is_ranked_and_retries_back_off() -> None:
    request = pending("1")
    found = ranks(router(), [replica("a"), replica("b"), replica("c")], request)
    assert sorted(found) == [["a"], ["b"], ["c"]]
    assert request.routing_context.should_backoff


def test_a_prefix_returns_to_its_shard() -> None:
    made, replicas = router(), [replica(name) for name in "abc"]
    first = ranks(made, replicas, pending("1", [b"x", b"y"]))[0]
    for number in range(5):
        assert ranks(made, replicas, pending(f"again {number}", [b"x", b"y", b"z"]))[0] == first


def test_a_burst_is_spread_before_any_replica_has_answered() -> None:
    made, replicas = router(), [replica("a"), replica("b")]
    found = [ranks(made, replicas, pending(str(number), [bytes([number])]))[0][0] for number in range(10)]
    assert sorted(found) == ["a"] * 5 + ["b"] * 5


def test_sequences_count_not_requests() -> None:
    made, replicas = router(), [replica("a"), replica("b")]
    (busy,) = ranks(made, replicas, pending("wide", n=8))[0]
    found = [ranks(made, replicas, pending(str(number)))[0][0] for number in range(8)]
    assert busy not in found


def test_what_others_send_counts_through_the_report() -> None:
    made = router()
    assert ranks(made, [replica("a", sequences=9), replica("b")], pending("1"))[0] == ["b"]


def test_a_finished_request_counts_no_more() -> None:
    made, replicas = router(max_imbalance=0), [replica("a"), replica("b")]
    (shard,) = ranks(made, replicas, pending("1", [b"x"]))[0]
    made.on_request_routed(pending("1", [b"x"]), SimpleNamespace(unique_id=shard), None)
    assert ranks(made, replicas, pending("2", [b"x"]))[0] != [shard]
    made.on_request_completed(SimpleNamespace(unique_id=shard), "1")
    made.on_request_completed(SimpleNamespace(unique_id=shard), "2")
    assert made.in_flight.counts() == {}


def test_a_request_that_was_never_sent_is_forgotten() -> None:
    in_flight = InFlight()
    in_flight.chosen("lost", "a", 1, now=0.0)
    in_flight.chosen("new", "b", 1, now=UNCONFIRMED_SECONDS + 1)
    assert in_flight.counts() == {"b": 1}


def test_a_call_without_a_request_goes_anywhere() -> None:
    call = pending("1")
    call.args = []
    assert sorted(ranks(router(), [replica("a"), replica("b")], call)) == [["a"], ["b"]]
    assert ranks(router(), [replica("a"), replica("b")], None) == [["a", "b"]]


def test_an_error_still_names_replicas() -> None:
    broken = SimpleNamespace(replica_id=SimpleNamespace(unique_id="a"), routing_stats=None)
    assert ranks(router(), [broken], pending("1")) == [["a"]]


def test_unknown_settings_are_named(caplog: pytest.LogCaptureFixture) -> None:
    router(max_imbalanc=3)
    assert "did you mean 'max_imbalance'" in caplog.text
