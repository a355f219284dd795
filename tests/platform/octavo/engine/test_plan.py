"""A step as the scheduler decided it, counted as the cost model counts."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.plan import StepPlan, num_prompt_logprobs

ENTRIES = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40), st.integers(0, 5)), max_size=6)


@given(ENTRIES)
def test_work_is_the_sum_over_every_token(entries):
    group = SimpleNamespace(samples=True)
    plan = StepPlan(
        [
            (SimpleNamespace(num_computed=done, remaining=count + left, group=group), count)
            for done, count, left in entries
        ]
    )
    plan.measure(has_prompts=True)
    places = [range(done, done + count) for done, count, _ in entries]
    assert plan.num_tokens == sum(map(len, places))
    assert plan.work.sequences == len(entries)
    assert plan.work.attended == sum(position + 1 for each in places for position in each)
    assert plan.work.context == sum(each.stop for each in places)
    assert [i for i, _ in plan.sampled()] == [i for i, (_, _, left) in enumerate(entries) if left == 0]


@given(st.integers(0, 20), st.integers(1, 30), st.integers(1, 25))
def test_prompt_logprobs_are_of_tokens_that_another_prompt_token_follows(done, count, prompt):
    seq = SimpleNamespace(num_computed=done, num_prompt=prompt, group=SimpleNamespace(needs_every_position=True))
    assert num_prompt_logprobs(seq, count) == len([p for p in range(done, done + count) if p + 1 < prompt])
    seq.group.needs_every_position = False
    assert num_prompt_logprobs(seq, count) == 0
