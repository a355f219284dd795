"""The router's bookkeeping: what is on its way, what is believed, and until when."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from octavo.cost_model import Cost
from octavo.load import LoadedAdapters, ShardState
from octavo.routing.policy import PACKED, Choice, Query, score
from octavo.routing.router import PREFILL, UNCONFIRMED_SECONDS, Decision, Router, RoutingConfig

IDLE = ShardState(
    decoding=0, context=0, prefilling=0, queued=0, backlog_tokens=0, backlog_attended=0, chunk=512, max_num_seqs=64,
    blocks=4096, blocks_free=4096, block_size=16, mean_output=100.0, cost=Cost(0.010, 1e-4, 0.0, 0.0, 0.0),
)  # fmt: skip
NAMES = ["a", "b", "c", "d"]


def chain(name: int, length: int = 62) -> list[bytes]:
    return [bytes([name, position]) * 8 for position in range(length)]


def router(**settings: object) -> Router:
    made = Router(RoutingConfig(**settings))  # type: ignore[arg-type]
    for name in NAMES:
        made.join(name, 0.0).blocks.part(0, 0, 1, [])
        made.heard(name, IDLE, [], 0.0)
    return made


def route(made: Router, ticket: str, blocks: list[bytes], now: float = 0.0, names: list[str] = NAMES) -> Choice:
    return made.route(ticket, blocks, Query(1000), names, now)


def test_no_shard_is_an_error() -> None:
    with pytest.raises(ValueError, match="no shard"):
        route(router(), "1", [], names=[])


def test_a_burst_of_strangers_is_spread_before_any_shard_has_reported() -> None:
    made = router()
    found = [route(made, str(number), chain(number)).order[0] for number in range(40)]
    assert sorted(found) == sorted(NAMES * 10)


def test_those_below_all_others_keep_one_shard_busy_which_others_are_sent_past() -> None:
    made, lines = router(), [f"line {number}" for number in range(4 * PACKED)]
    found = [made.route(name, chain(0), Query(1000, below=True), NAMES, 0.0).order[0] for name in lines]
    assert found == [shard for shard in NAMES for _ in range(PACKED)]
    assert {made.state_of(name, 0.0) for name in NAMES} == {IDLE}, "they are in no sum"
    for name in lines[2 * PACKED :]:
        made.completed(name)
    people = [route(made, f"person {number}", chain(1 + number)).order[0] for number in range(8)]
    assert people[:2] == ["c", "d"] or people[:2] == ["d", "c"]
    assert set(people) == set(NAMES), "a step of theirs is worth less waiting than a prompt"
    for name in lines[: 2 * PACKED]:
        made.completed(name)
    made.settle(0.0)
    assert not any(shard.below for shard in made.shards.values())


def test_those_below_all_others_are_nowhere_many_more_than_elsewhere() -> None:
    made = router()
    for number in range(20 * PACKED):  # one shard holds what all of them have in common, and would get them all
        made.route(f"line {number}", chain(0), Query(1000, below=True), NAMES, 0.0)
    counts = [made.shards[name].below for name in NAMES]
    assert sum(counts) == 20 * PACKED
    assert max(counts) - min(counts) <= PACKED


def test_a_burst_of_equal_prompts_is_computed_once_by_each_shard_at_most() -> None:
    """Waiting for the first one takes about as long as computing it anew; after that all follow their blocks."""
    made = router()
    found = [route(made, str(number), chain(1)) for number in range(40)]
    assert sum(choice.cached == 0 for choice in found) <= len(NAMES)
    assert {choice.cached for choice in found[len(NAMES) :]} == {992}


def test_a_prefix_that_everybody_shares_spreads_before_one_shard_is_late() -> None:
    made = router()
    found = [route(made, str(number), chain(1, 31) + chain(number, 31)) for number in range(200)]
    most = max(sum(choice.order[0] == name for choice in found) for name in NAMES)
    assert most <= 65
    assert {choice.reason for choice in found} <= {"load", "prefix", "spread"}


def test_a_request_counts_until_a_report_counts_it() -> None:
    made = router()
    first = route(made, "1", chain(1)).order[0]
    shard = made.shards[first]
    assert (shard.tokens, shard.sequences, shard.in_flight) == (1000, 1, 1)
    made.heard(first, replace(IDLE, backlog_tokens=1000, queued=1), ["1"], 0.05)
    route(made, "2", chain(2))
    assert (shard.tokens, shard.sequences, shard.in_flight) == (0, 0, 1)
    made.completed("1")
    route(made, "3", chain(3))
    assert shard.in_flight == 0


def test_an_adapter_is_expected_where_it_was_said_or_sent_to_be() -> None:
    made = router()
    made.heard("c", None, [], None, LoadedAdapters(("x",), 0.2))

    def adapters(adapter: str) -> dict[str, float]:
        made.told = told = []  # type: ignore[assignment]
        made.told = told.append
        made.route(f"{adapter}{len(made.shards)}", [], Query(10, adapter=adapter), NAMES, 0.0)
        return {each.name: each.adapter for each in told[0].candidates}

    assert adapters("x") == {"a": 0.05, "b": 0.05, "c": 0.0, "d": 0.05}
    assert made._sent["x4"].shard is made.shards["c"]
    first = adapters("y")
    assert (min(first.values()), first["c"]) == (0.05, 0.2)
    where = next(name for name, shard in made.shards.items() if "y" in shard.adapters)
    assert adapters("y")[where] == 0.0
    made.heard(where, None, [], None, LoadedAdapters(("z",), 0.1))  # it was put out, or could not be read
    assert adapters("y")[where] == 0.1
    assert not any(adapters("").values())


def test_a_question_asked_again_at_once_finds_its_shard_free() -> None:
    """The first one's report still counts it; the next report is a tenth of a second away."""
    made = router()
    first = route(made, "1", chain(1, 4)).order[0]
    made.heard(first, replace(IDLE, backlog_tokens=1000, queued=1), ["1"], 0.01)
    made.completed("1")
    again = route(made, "2", chain(1, 4), 0.02)
    assert (again.order[0], again.reason) == (first, "prefix")
    made.heard(first, replace(IDLE, backlog_tokens=5000, queued=3), ["2"], 0.03)
    made.heard(first, replace(IDLE, backlog_tokens=5000, queued=3), [], 0.04)
    made.completed("2")  # a later report than the one that counted it: what waits there is somebody else's
    assert route(made, "3", chain(1, 4), 0.05).order[0] != first


def test_a_request_that_failed_counts_no_more() -> None:
    made = router()
    first = route(made, "1", chain(1)).order[0]
    made.completed("1")
    made.completed("unknown")
    route(made, "2", chain(2), names=["d" if first == "a" else "a"])
    assert (made.shards[first].tokens, made.shards[first].in_flight) == (0, 0)


def test_a_request_that_did_not_run_leaves_no_blocks_behind() -> None:
    """Refused by a full shard, or cancelled in its queue: the next of its kind is not sent after nothing."""
    made = router()
    sent = [route(made, f"refused {number}", chain(1)).order[0] for number in range(3)]
    for number in range(3):
        made.completed(f"refused {number}", ran=False)
    assert route(made, "again", chain(1)).cached == 0
    made.completed("again", ran=True)
    assert sum(len(shard.blocks.coming) for shard in made.shards.values()) == 62
    made.settle(1000.0)  # what was taken back is not taken back again
    assert [made.shards[name].blocks.coming for name in sent] == [set()] * 3


def test_of_two_with_one_prefix_the_one_that_runs_is_still_expected() -> None:
    made = router()
    first = route(made, "1", chain(1)).order[0]
    route(made, "2", chain(1), names=[first])
    made.completed("2", ran=False)
    made.settle(0.0)
    assert made.shards[first].blocks.coming == set(chain(1))


def test_a_retry_counts_once() -> None:
    made = router()
    for _ in range(3):
        route(made, "1", chain(1))
    assert sum(shard.in_flight for shard in made.shards.values()) == 1
    assert sum(shard.tokens for shard in made.shards.values()) == 1000 - 992  # the second time its blocks are coming


def test_a_request_that_was_never_sent_is_forgotten() -> None:
    made = router()
    first = route(made, "lost", chain(1)).order[0]
    for name in NAMES:
        made.heard(name, IDLE, [], UNCONFIRMED_SECONDS + 1)
    route(made, "new", chain(2), now=UNCONFIRMED_SECONDS + 1, names=["d" if first == "a" else "a"])
    assert made.shards[first].in_flight == 0


def test_blocks_that_were_coming_are_not_believed_for_ever() -> None:
    made = router()
    first = route(made, "1", chain(1)).order[0]
    assert len(made.shards[first].blocks.coming) == 62
    for name in NAMES:
        made.heard(name, IDLE, [], 5.0)
    assert route(made, "2", chain(1), now=5.0).cached == 0
    assert made.shards[first].blocks.coming <= set(chain(1))
    assert sum(len(shard.blocks.coming) for shard in made.shards.values()) == 62


def test_events_decide_once_they_are_there() -> None:
    made = router()
    made.shards["c"].blocks.changes(0, [("stored", chain(1))])
    choice = route(made, "1", chain(1))
    assert (choice.order[0], choice.cached, choice.reason) == ("c", 992, "prefix")
    made.shards["c"].blocks.changes(1, [("removed", chain(1)[:1])])
    assert route(made, "2", chain(1), now=60.0).cached == 0


def test_silence_is_noticed_said_once_and_over_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    made = router(stale_after_s=2.0)
    made.shards["c"].blocks.changes(0, [("stored", chain(1))])
    for now in (1.0, 2.0, 3.0, 4.0):
        for name in "abd":
            made.heard(name, IDLE, [], now)
        choice = route(made, f"at {now}", chain(1), now)
        assert (choice.reason == "prefix") == (now <= 2.0)
    assert made.shards["c"].stale
    assert caplog.text.count("was heard from c") == 1
    made.heard("c", IDLE, [], 5.0)
    assert route(made, "again", chain(1), 5.0).order[0] == "c"
    assert "c is heard again; 62 blocks" in caplog.text


def test_a_shard_with_a_gap_grows_old_though_it_talks() -> None:
    made = router(stale_after_s=2.0)
    made.shards["c"].blocks.changes(7, [("stored", chain(1))])
    for name in NAMES:
        made.heard(name, IDLE, [], 3.0)
    route(made, "1", chain(1), 3.0)
    assert [name for name in NAMES if made.shards[name].stale] == ["c"]


def test_silent_shards_share_what_this_router_sends() -> None:
    made = router()
    found = [route(made, str(number), chain(1), now=100.0) for number in range(40)]
    assert {choice.reason for choice in found} == {"stale"}
    assert sorted(choice.order[0] for choice in found) == sorted(NAMES * 10)


def test_a_shard_that_left_takes_its_state_with_it() -> None:
    made = router()
    first = route(made, "1", chain(1)).order[0]
    made.leave(first)
    made.completed("1")
    rest = [name for name in NAMES if name != first]
    assert route(made, "2", chain(1), names=rest).cached == 0
    made.heard(first, IDLE, ["1"], 1.0)  # its last words
    assert first not in made.shards


def test_a_shard_without_a_cost_model_borrows_one() -> None:
    made = router()
    slow = Cost(1.0, 1e-2, 0.0, 0.0, 0.0)
    for name in NAMES:
        made.heard(name, replace(IDLE, cost=slow if name == "b" else Cost(0, 0, 0, 0, 0)), [], 0.0)
    choice = route(made, "1", chain(1))
    assert choice.score.first_token == pytest.approx(1000 / 512 + 10.0)


def test_a_decision_is_logged_with_its_numbers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    route(router(log_decisions=True), "ticket", chain(1))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "ticket goes to" in line
    assert all(f"{name}: 0." in line for name in NAMES)


def test_a_prefix_stays_with_a_late_holder_only_while_the_fleet_is_busy() -> None:
    made = router()
    made.shards["a"].blocks.part(0, 0, 1, chain(1))
    late, idle = replace(IDLE, backlog_tokens=2048, queued=2), IDLE

    def asked(ticket: str, now: float, **loads: ShardState) -> str:
        for name, load in loads.items():
            made.heard(name, load, [], now)
        choice = route(made, ticket, chain(1), now)
        made.completed(ticket)
        return choice.reason

    busy = dict.fromkeys(NAMES, replace(IDLE, backlog_tokens=16, queued=1))
    asked("first", 0.0, **busy)
    assert [asked(f"{now}", now, **busy) for now in range(1, 30)] == ["prefix"] * 29
    assert asked("busy", 30.0, a=late, b=idle, c=idle, d=idle) == "prefix"
    assert asked("nothing since", 90.0, **dict.fromkeys(NAMES, idle)) == "prefix"
    assert asked("quiet", 90.0, a=late, b=idle, c=idle, d=idle) == "spread"


def test_who_listens_is_told_what_a_decision_was_made_of() -> None:
    made, told = router(), list[Decision]()
    made.told = told.append
    choice = route(made, "1", chain(1))
    made.told = None
    route(made, "2", chain(1))
    (decision,) = told
    assert (decision.ticket, decision.choice, decision.query.tokens) == ("1", choice, 1000)
    assert {shard.name for shard in decision.candidates} == set(NAMES)
    best = min(decision.candidates, key=lambda shard: score(decision.query, shard, shard.cached, 0.01).total)
    assert best.name == choice.order[0]


def test_a_busy_holder_gives_what_it_has_and_the_rest_follows_the_fetch() -> None:
    """It counts what is held, not what is coming; the second request finds it coming where the first one fetches."""
    made = Router(RoutingConfig())
    for name in ("a", "b"):
        made.join(name, 0.0).blocks.part(0, 0, 1, chain(1) if name == "a" else [])
        made.heard(name, replace(IDLE, fetched_block=1e-4), [], 0.0)
    made.heard("a", replace(IDLE, fetched_block=1e-4, queued=4, backlog_tokens=8192), [], 0.0)
    first = route(made, "1", chain(1), names=["a", "b"])
    assert (first.order[0], first.reason, first.peer, first.peer_blocks, first.cached) == ("b", "fetch", "a", 62, 992)
    second = route(made, "2", chain(1), names=["a", "b"])
    assert (second.order[0], second.peer, second.cached) == ("b", "", 992)


def test_a_shard_without_room_gives_blocks_and_a_stale_one_is_not_asked() -> None:
    made = Router(RoutingConfig())
    for name in ("a", "b"):
        made.join(name, 0.0).blocks.part(0, 0, 1, chain(1) if name == "a" else [])
        made.heard(name, replace(IDLE, fetched_block=1e-4), [], 0.0)
    assert route(made, "1", chain(1), names=["b"]).peer == "a"
    made.completed("1", ran=False)
    made.heard("b", None, [], 5.0)
    route(made, "2", chain(2), 5.0, ["a", "b"])  # it is noticed
    assert route(made, "3", chain(1), 5.0, ["b"]).peer == ""


def test_a_prompt_that_is_computed_apart_counts_at_both_shards() -> None:
    """Prompts that go to one of two, without streams, make it the one for prompts."""
    made = Router(RoutingConfig(apart_weight=1.0))
    streams = replace(IDLE, decoding=20, context=20_000, fetched_block=1e-5)
    for name, state in (("a", streams), ("b", replace(IDLE, fetched_block=1e-5))):
        made.join(name, 0.0).blocks.part(0, 0, 1, [])
        made.heard(name, state, [], 0.0)
    found = []
    for number in range(12):
        query = Query(4000, parts=True)
        found.append(made.route(str(number), chain(number, 249), query, ["a", "b"], number * 2.0))
        for name in ("a", "b"):
            made.heard(name, None, [], number * 2.0)
        if number < 11:
            made.completed(str(number))
            made.completed(f"{number}{PREFILL}")
    assert found[0].prefill is None
    assert (found[-1].order[0], found[-1].placement("").prefill, found[-1].reason) == ("a", "b", "apart")
    a, b = made.shards["a"], made.shards["b"]
    assert (a.fetching, b.fetching) == (249, 0)
    assert made.state_of("a", 24.0).blocks_free == IDLE.blocks_free - 249, "it will hold them without computing them"
    assert (a.in_flight, b.in_flight) == (1, 1)
    assert (a.tokens, b.tokens) == (16, 4000)
    made.completed("11")
    made.completed(f"11{PREFILL}")
    made.settle(30.0)
    assert (a.in_flight, b.in_flight, a.tokens, b.tokens, a.fetching) == (0, 0, 0, 0, 0)
