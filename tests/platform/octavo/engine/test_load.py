"""What a shard says of itself is what its scheduler does."""

import pytest

from octavo.cost_model import Cost, StepWork, attended
from octavo.engine.load import UNKNOWN_OUTPUT, num_filled_slots
from octavo.errors import Overloaded
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable


def test_the_state_counts_who_decodes_who_prefills_and_who_queues(fake):
    engine = fake.engine(num_blocks=200, max_num_seqs=3, max_num_batched_tokens=32)
    engine.add(fake.request("decodes", list(range(10)), max_tokens=50))
    engine.step()
    for i in range(3):
        engine.add(fake.request(f"r{i}", [500 + i, *range(99)], max_tokens=5))
    engine.step()
    state = engine.scheduler.state()
    assert (state.decoding, state.context, state.prefilling, state.queued) == (1, 12, 1, 2)
    computed = 31  # the chunk beside one decoding sequence
    assert state.backlog_tokens == 300 - computed
    assert state.backlog_attended == 2 * attended(0, 100) + attended(computed, 100 - computed)
    assert (state.chunk, state.max_num_seqs, state.blocks, state.block_size) == (31, 3, 200, 4)
    assert (state.num_running, state.num_sequences) == (2, 4)
    assert engine.stats().state == state


def test_nothing_of_a_prompt_that_is_expected_in_the_cache_is_backlog(fake):
    engine = fake.engine(max_num_seqs=1)
    engine.add(fake.request("large", list(range(20)), n=3, max_tokens=4))
    engine.step()
    state = engine.scheduler.state()
    assert (state.decoding, state.queued, state.backlog_tokens) == (1, 1, 1)
    assert state.backlog_attended == attended(19, 1)


def test_counters(fake):
    engine = fake.engine()
    for name in ("cold", "warm"):
        engine.add(fake.request(name, list(range(41)), n=2, max_tokens=3))
        fake.run(engine)
    counters = engine.stats().counters
    assert (counters.arrived, counters.finished, counters.output_tokens) == (4, 4, 12)
    assert (counters.prompt_tokens, counters.cached_tokens, counters.preemptions) == (82, 40, 0)
    assert engine.scheduler.state().mean_output == pytest.approx((4 * 3 + 4 * UNKNOWN_OUTPUT) / 8, rel=0.01)
    engine.add(fake.request("more", list(range(41)), n=6, max_tokens=3))
    fake.run(engine)
    assert engine.scheduler.state().mean_output == pytest.approx(3, rel=0.02)
    engine.add(fake.request("later", [1], max_tokens=1))
    assert counters.arrived == 4, "a snapshot does not change"


def test_steps_are_held_against_what_the_cost_model_had_said(fake):
    engine = fake.engine()
    engine.add(fake.request("a", list(range(5)), max_tokens=4))
    fake.run(engine)
    counters = engine.stats().counters
    assert (counters.step_seconds, counters.predicted_seconds) == (0, 0), "it has not seen enough steps"
    engine.add(fake.request("b", list(range(5)), max_tokens=40))
    fake.run(engine)
    counters = engine.stats().counters
    assert counters.step_seconds > 0
    assert counters.predicted_seconds == pytest.approx(counters.step_seconds, rel=0.5)


def test_a_refused_request_is_told_what_the_router_and_the_autoscaler_are_told(fake):
    engine = fake.engine(num_blocks=2000, max_num_seqs=1, max_num_queued_requests=8)
    cost = Cost(0.05, 1e-3, 1e-3, 1e-6, 1e-6)
    for tokens in (1, 10, 100, 200, 50, 300, 20, 400, 64, 128):
        work = StepWork(tokens, 1, tokens, tokens, has_prompts=tokens > 1)
        engine.scheduler.cost_model.observe(work, cost.seconds(work))
    for i in range(9):
        engine.add(fake.request(f"r{i}", [i] * 900, max_tokens=2))
    with pytest.raises(Overloaded) as refused:
        engine.add(fake.request("one more", [1] * 900))
    start = engine.scheduler.state().start_seconds()
    assert refused.value.retry_after == start / 10 > 1, "one of the nine that wait must have begun"


def test_slots_are_counted_while_the_engine_gives_blocks_back():
    """Another thread counts; in the middle of it proposed tokens are refused, and their blocks released."""
    pool = BlockPool(9, 4)

    class Shrinks:
        def __init__(self):
            self.table = BlockTable(pool)
            self.table.grow(0, 30)

        @property
        def num_computed(self):
            self.table.shrink(3)
            return 29

    assert 0 <= num_filled_slots([Shrinks()], pool) <= pool.num_blocks * pool.block_size
