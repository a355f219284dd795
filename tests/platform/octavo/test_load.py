"""One state of a shard, and what it predicts; a step takes 10 ms, a token 0.1 ms, and a step has 512 prompt tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cost_model import NO_COST, Cost, attended
from octavo.load import ShardState

IDLE = ShardState(
    decoding=0, context=0, prefilling=0, queued=0, backlog_tokens=0, backlog_attended=0, chunk=512, max_num_seqs=64,
    blocks=4096, blocks_free=4096, block_size=16, mean_output=100.0, cost=Cost(0.010, 1e-4, 2e-4, 1e-8, 1e-7),
)  # fmt: skip
DECODING = replace(IDLE, decoding=40, context=40_000)
STEP = 0.010 + 40 * 3e-4 + 40_000 * 1.1e-7


def test_nothing_waits_at_an_idle_shard() -> None:
    assert IDLE.step_seconds == pytest.approx(0.010)
    assert (IDLE.backlog_seconds, IDLE.queue_seconds, IDLE.start_seconds(1000)) == (0, 0, 0)
    assert replace(DECODING, cost=NO_COST).start_seconds(1000) == 0  # nothing was measured


def test_a_backlog_takes_its_steps_and_its_tokens() -> None:
    assert DECODING.step_seconds == pytest.approx(STEP)
    assert DECODING.backlog_seconds == 0
    state = replace(DECODING, prefilling=1, queued=1, backlog_tokens=1024, backlog_attended=attended(0, 1024))
    assert state.backlog_seconds == pytest.approx(2 * (STEP + 2e-4) + 1024 * 1e-4 + 1024 * 1025 / 2 * 1e-8)
    assert state.queue_seconds == pytest.approx(0.5 * (STEP + 2e-4) + state.backlog_seconds)
    assert state.start_seconds() == state.queue_seconds


def test_a_request_waits_for_places_or_for_blocks() -> None:
    full = replace(DECODING, max_num_seqs=40)
    assert full.wait_seconds(1, 1) == pytest.approx(100 / 40 * STEP)  # one of 40 ends every 100 / 40 steps
    assert full.wait_seconds(1, 8) == pytest.approx(8 * 100 / 40 * STEP)
    assert replace(full, queued=3).wait_seconds(1, 1) == pytest.approx(4 * 100 / 40 * STEP)
    held = replace(DECODING, blocks=400, blocks_free=0)  # each of the 40 holds 10 blocks
    assert held.wait_seconds(1600, 1) == pytest.approx(10 * 100 / 40 * STEP)
    assert replace(held, blocks_free=200).wait_seconds(1600, 1) == 0


def test_places_are_left_while_the_backlog_is_computed() -> None:
    full = replace(DECODING, max_num_seqs=40, queued=3)  # ten steps until four have ended
    assert replace(full, backlog_tokens=4 * 512).wait_seconds(1, 1) == pytest.approx(6 * STEP)
    assert replace(full, backlog_tokens=12 * 512).wait_seconds(1, 1) == 0


def test_a_burst_at_an_idle_shard_waits_for_the_places_that_it_takes_itself() -> None:
    """Nobody decodes yet, but 64 of them soon will: the router must not take the rest for the next in line."""
    burst = IDLE.with_request(64 + 128, 0, 0)
    full = 0.010 + 64 * 3e-4
    assert burst.wait_seconds(0, 1) == pytest.approx(129 / 64 * 100 * full)
    assert IDLE.with_request(63, 0, 0).wait_seconds(0, 1) == 0


def test_in_the_long_run_as_many_begin_as_end() -> None:
    step = 0.010 + 40 * (3e-4 + 1.1e-7 * (1000 + 50))
    seconds = 100 * step + 40 * (1000 * 1e-4 + 1000 * 1000 / 2 * 1e-8 + 2e-4)
    assert IDLE.starts_per_second(1000, 40) == pytest.approx(40 / seconds)
    assert replace(IDLE, cost=NO_COST).starts_per_second(1000, 40) == float("inf")


@pytest.mark.parametrize("cost", [Cost(0.060, 0, 0, 0, 0), Cost(0, 1e-4, 0, 0, 0), Cost(0, 0, 1e-3, 0, 0)])
def test_an_encoder_does_as_much_as_its_steps_whatever_they_were_fitted_to(cost: Cost) -> None:
    """All of its steps have 60 texts of 10 tokens and take 60 ms; nothing says which of these costs it."""
    encoder = replace(IDLE, mean_output=0.0, chunk=600, max_num_seqs=1024, cost=cost)
    assert encoder.starts_per_second(10, 1024) == pytest.approx(1000)
    assert encoder.with_request(120, 1200, 0).backlog_seconds == pytest.approx(0.120)


states = st.builds(
    replace, st.just(DECODING), decoding=st.integers(0, 64), prefilling=st.integers(0, 8), queued=st.integers(0, 99),
    backlog_tokens=st.integers(0, 10**6), backlog_attended=st.integers(0, 10**9), chunk=st.integers(1, 4096),
    blocks_free=st.integers(0, 4096), mean_output=st.floats(0, 1000),
)  # fmt: skip
requests = st.tuples(st.integers(1, 16), st.integers(1, 10_000), st.integers(1, 10**7))


@given(states, requests)
def test_one_more_request_is_never_sooner_and_taking_it_back_leaves_no_trace(
    state: ShardState, request: tuple[int, int, int]
) -> None:
    more = state.with_request(*request)
    assert more.num_sequences == state.num_sequences + request[0]
    assert more.num_running == state.num_running
    assert more.start_seconds() >= state.start_seconds()
    assert more.without_request(*request) == state


@given(states, requests)
def test_taking_away_what_has_moved_on_never_counts_below_nothing(
    state: ShardState, request: tuple[int, int, int]
) -> None:
    less = state.without_request(*request)
    counts = less.decoding, less.prefilling, less.queued, less.backlog_tokens, less.backlog_attended
    assert min(counts) >= 0
    assert less.num_sequences >= state.num_sequences - request[0]
