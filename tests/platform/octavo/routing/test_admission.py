"""Who may wait, and what the others are told: bounds, honest times, and nobody told the same."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.errors import DeadlineMissed, Overloaded
from octavo.load import ShardState
from octavo.rehearsal.fleet import Fleet, Trip
from octavo.rehearsal.simulated import load_profile
from octavo.request import Request, SamplingParams
from octavo.routing.admission import (
    FEW,
    MARGIN,
    Admission,
    Outlook,
    Parts,
    QueueLimits,
    Room,
    Waiting,
    check_deadline,
    outlook,
)
from octavo.routing.router import RoutingConfig

IDLE = ShardState(
    decoding=0, context=0, prefilling=0, queued=0, backlog_tokens=0, backlog_attended=0, chunk=512, max_num_seqs=16,
    blocks=4096, blocks_free=4096, block_size=16, mean_output=100.0, cost=Cost(0.010, 0.0, 0.0, 0.0, 0.0),
)  # fmt: skip
"""A step takes 10 ms: 16 sequences of 100 tokens a second."""
FULL = replace(IDLE, decoding=16, context=1600, blocks_free=2000)
RATE = 16.0


def room(state: ShardState, mine: int | None = None, more: int = 0) -> Room:
    return Room(state=state, mine=state.num_sequences if mine is None else mine, more=more)


def refused(admission: Admission, found: Outlook, key: bytes, now: float) -> float:
    with pytest.raises(Overloaded) as error:
        admission.admit(found, lambda: key, now)
    return error.value.retry_after


def test_an_idle_shard_takes_a_request_of_any_length_at_once() -> None:
    assert outlook([room(FULL), room(IDLE, more=16)], Waiting()).ahead == 0


def test_what_waits_goes_at_the_rate_of_all_shards() -> None:
    one = outlook([room(FULL)], Waiting(sequences=160, tokens=16_000))
    assert one.ahead == pytest.approx(160 / RATE, rel=0.05)
    assert one.each == pytest.approx(1 / RATE)
    assert one.tokens == 16_000
    two = outlook([room(FULL), room(FULL)], Waiting(sequences=160, tokens=16_000))
    assert two.ahead == pytest.approx(80 / RATE, rel=0.05)
    slow = replace(FULL, cost=Cost(0.050, 0.0, 0.0, 0.0, 0.0))
    assert outlook([room(FULL), room(slow)], Waiting(sequences=96)).ahead == pytest.approx(96 / (1.2 * RATE), rel=0.05)


def test_a_gateway_that_may_fill_only_some_places_counts_on_these_alone() -> None:
    few = replace(IDLE, decoding=4, context=400)
    assert outlook([room(few)], Waiting(sequences=40)).each == pytest.approx(1 / 4)


def test_other_gateways_have_their_share_of_the_places() -> None:
    alone = outlook([room(FULL, mine=16)], Waiting(sequences=160))
    half = outlook([room(FULL, mine=8)], Waiting(sequences=80))
    assert half.ahead == pytest.approx(alone.ahead)


def test_shards_that_will_come_are_counted_on_from_when_they_do() -> None:
    long = Waiting(sequences=1600, growth=8.0, soon=5.0)
    assert outlook([room(FULL)], long).ahead == pytest.approx(5 + (1600 - 5 * RATE) / (8 * RATE))
    assert outlook([room(FULL)], replace(long, sequences=16)).ahead == pytest.approx(1.0, rel=0.1)
    none = Waiting(sequences=32, tokens=3200, growth=8.0, soon=4.0, rate=RATE)
    assert outlook([], none) == Outlook(4 + 32 / RATE, 1 / RATE, 3200)


def test_shards_that_will_come_are_not_counted_on_for_what_is_sent_to_one_that_is_there() -> None:
    growing = Waiting(growth=8.0, soon=5.0)
    busy = replace(FULL, queued=1600)
    assert outlook([room(busy, more=10_000)], growing).ahead > 90
    assert outlook([room(busy)], growing).ahead == 5.0


def test_a_few_are_accepted_whatever_is_ahead_of_them() -> None:
    slow = replace(IDLE, prefilling=1, backlog_tokens=6000, cost=Cost(0.0, 0.010, 0.0, 0.0, 0.0))
    admission = Admission(QueueLimits(10.0, 100_000))
    found = outlook([room(slow, more=9)], Waiting(sequences=FEW - 2, tokens=200))
    assert found.ahead > 50
    admission.admit(found, lambda: b"few", 0.0)
    assert refused(admission, outlook([room(slow, more=9)], Waiting(sequences=FEW - 1)), b"more", 0.0) > 40
    outlook_of_two = outlook([room(slow, more=9), room(slow, more=9)], Waiting(sequences=FEW - 1))
    admission.admit(outlook_of_two, lambda: b"two shards", 0.0)
    refused(admission, replace(found, tokens=100_001), b"memory", 0.0)


def test_seconds_and_tokens_bound_the_queue_and_nothing_is_asked_of_who_is_accepted() -> None:
    admission = Admission(QueueLimits(10.0, 1000))
    admission.admit(Outlook(10.0, 0.1, 1000), lambda: pytest.fail("nobody was refused yet"), 0.0)
    assert refused(admission, Outlook(12.0, 0.1, 1000), b"a", 0.0) == pytest.approx(2.1)
    assert refused(admission, Outlook(8.0, 0.0, 4000), b"b", 0.0) == pytest.approx(6.0)


def test_each_is_told_a_later_time_and_who_asks_again_too_soon_the_rest_of_it() -> None:
    admission = Admission(QueueLimits(10.0))
    told = [refused(admission, Outlook(12.0, 0.5, 0), bytes([i]), 0.0) for i in range(4)]
    assert told == pytest.approx([2.5, 3.0, 3.5, 4.0])
    assert refused(admission, Outlook(12.0, 0.5, 0), bytes([1]), 1.0) == pytest.approx(2.0)


def test_who_comes_back_when_told_goes_before_those_who_have_just_come() -> None:
    admission = Admission(QueueLimits(10.0))
    wait = refused(admission, Outlook(11.0, 0.5, 0), b"first", 0.0)
    busy = Outlook(10.4, 0.5, 0)
    refused(admission, busy, b"newcomer", wait)
    admission.admit(busy, lambda: b"first", wait)
    refused(admission, busy, b"first", wait)  # one time only
    assert refused(admission, Outlook(14.0, 0.5, 0), b"newcomer", 100.0) > 4  # far too late: it is a newcomer again


def test_who_comes_back_finds_more_tokens_too() -> None:
    admission = Admission(QueueLimits(10.0, 1000))
    busy = Outlook(10.0, 0.5, 1200)
    wait = refused(admission, busy, b"first", 0.0)
    refused(admission, busy, b"newcomer", wait)
    admission.admit(busy, lambda: b"first", wait)


def test_a_flood_that_does_not_come_back_delays_the_others_no_longer_than_it_takes_to_see_that() -> None:
    admission, found = Admission(QueueLimits(10.0)), Outlook(11.0, 0.5, 0)
    for number in range(1000):
        refused(admission, found, number.to_bytes(2, "big"), number / 1000)
    assert refused(admission, found, b"at first", 1.0) > 100
    for second in range(2, 60):
        last = refused(admission, found, b"%d" % second, float(second))
    assert last < 10


def test_who_comes_before_the_time_leaves_nothing_behind() -> None:
    admission = Admission(QueueLimits(10.0))
    for number in range(1000):
        refused(admission, Outlook(100.0, 0.5, 0), number.to_bytes(2, "big"), 0.0)
        admission.admit(Outlook(1.0, 0.5, 0), lambda number=number: number.to_bytes(2, "big"), 0.0)  # type: ignore[misc]
    assert not admission._told
    assert len(admission._order) < 100


def test_those_who_do_not_come_back_hold_no_places() -> None:
    admission = Admission(QueueLimits(10.0))
    for number in range(400):  # ten a second, and room for two of them
        last = refused(admission, Outlook(11.0, 0.5, 0), number.to_bytes(2, "big"), number / 10)
    assert last < 60
    for number in range(400, 2000):
        last = refused(admission, Outlook(11.0, 0.5, 0), number.to_bytes(2, "big"), number / 10)
    assert last < 3


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 100), st.integers(0, 30)), max_size=60))
def test_nobody_waits_longer_than_the_bound_and_every_time_told_is_in_the_future(
    arrivals: list[tuple[float, float, int]],
) -> None:
    admission, now = Admission(QueueLimits(10.0)), 0.0
    for pause, ahead, name in arrivals:
        now += pause
        told = None
        with contextlib.suppress(Overloaded):
            admission.admit(Outlook(ahead, 0.1, 0), lambda name=name: bytes([name]), now)
            told = 0.0
        assert told != 0.0 or ahead <= 12.5
        assert all(due > now - 5.0 for due in admission._told.values())
    assert len(admission._told) <= 31


class Crowd:
    """Clients of one simulated shard, at twice its capacity; one in five of those that are refused comes again."""

    def __init__(self, limit: float) -> None:
        config = EngineConfig(max_num_seqs=16, max_num_batched_tokens=2048, target_itl=0.05)
        self.fleet = Fleet(load_profile("llama-8b-h100"), 1, config, RoutingConfig())
        self.admission = Admission(QueueLimits(limit))
        self.rng = random.Random(1)
        self.trips: dict[int, Trip] = {}
        self.told: dict[int, list[tuple[float, float]]] = {}  # client -> when it was refused, and the seconds

    def arrive(self, client: int) -> None:
        router, now = self.fleet.routers[0], self.fleet.now
        state, mine = router.state_of("shard0", now), router.shards["shard0"].in_flight
        found = outlook([Room(state=state, mine=mine, more=10_000)], Waiting())
        try:
            self.admission.admit(found, lambda: client.to_bytes(4, "big"), now)
        except Overloaded as error:
            if client in self.told or self.rng.random() < 0.2:
                self.told.setdefault(client, []).append((now, error.retry_after))
                self.fleet.at(now + error.retry_after, lambda: self.arrive(client))
            return
        prompt = [self.rng.randrange(1000) for _ in range(100)]
        params = SamplingParams(max_tokens=self.rng.randint(10, 90), ignore_eos=True)
        request = Request(request_id=str(client), prompt_token_ids=prompt, params=params)
        self.trips[client] = self.fleet.send(request)

    def come(self, rate: float, seconds: float) -> None:
        time, client = 0.0, 0
        while (time := time + self.rng.expovariate(rate)) < seconds:
            client += 1
            self.fleet.at(time, lambda client=client: self.arrive(client))

    def answered(self, start: float, end: float) -> float:
        """Answers per second."""
        ends = [trip.finished for trip in self.trips.values() if trip.finished is not None]
        return sum(start <= when < end for when in ends) / (end - start)


def test_at_twice_the_load_the_shard_is_busy_and_whoever_is_told_a_time_finds_room_then() -> None:
    limit, seconds = 3.0, 16.0
    unbounded = Crowd(1e9)
    unbounded.come(60.0, seconds)
    unbounded.fleet.run(until=seconds)
    capacity = unbounded.answered(6.0, seconds)
    crowd = Crowd(limit)
    crowd.come(2 * capacity, seconds)
    crowd.fleet.run(until=2 * seconds)
    assert crowd.answered(6.0, seconds) >= 0.95 * capacity
    waits = sorted(t.first_token - t.sent for t in crowd.trips.values() if t.first_token is not None)
    assert waits[-1] < 1.4 * limit
    assert len(crowd.told) > 20
    right = 0
    for client, told in crowd.told.items():
        trip, (refused, first) = crowd.trips[client], told[0]
        assert trip.first_token is not None
        truth = trip.sent - refused + (trip.first_token - trip.sent - limit)
        right += len(told) == 1 and abs(first - truth) <= max(1.0, 0.3 * truth)
    assert right >= 0.9 * len(crowd.told)


@pytest.mark.parametrize(
    ("held", "tenant", "weight", "part"),
    [({}, "a", 1.0, 1.0), ({"a": 9}, "a", 1.0, 1.0), ({"a": 9}, "b", 1.0, 0.0), ({"a": 9, "b": 1}, "b", 1.0, 0.2),
     ({"a": 9, "b": 1}, "b", 3.0, 0.4 / 3), ({"a": 9, "b": 1}, "a", 1.0, 1.0), ({"a": 5, "b": 5}, "a", 1.0, 1.0)],
)  # fmt: skip
def test_only_what_is_ahead_of_its_own_tenant_counts(
    held: dict[str, int], tenant: str, weight: float, part: float
) -> None:
    parts = Parts()
    for name, sequences in held.items():
        parts.add(name, weight if name == tenant else 1.0, sequences)
    assert parts.of(tenant, weight) == pytest.approx(part)
    for name, sequences in held.items():
        parts.remove(name, sequences)
    assert parts.of(tenant, weight) == 1.0


@pytest.mark.parametrize(
    ("expected", "left", "fits"),
    [
        (1.0, 2.0, True),
        (1.0, MARGIN, True),
        (1.0, 1.1, False),
        (0.0, 1e-3, True),
        (0.0, 0.0, False),
        (2.0, -1.0, False),
    ],
)
def test_a_deadline_that_cannot_be_met_is_refused_with_what_can(expected: float, left: float, fits: bool) -> None:
    if fits:
        check_deadline(expected, left)
        return
    with pytest.raises(DeadlineMissed, match=f"allow for {MARGIN * expected:.2f} s") as error:
        check_deadline(expected, left)
    assert error.value.retry_after == pytest.approx(MARGIN * expected - left)
