import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.cost_model import StepWork


def ready(engine):
    """An engine whose cost model has seen enough: a millisecond a step, and 0.1 a token."""
    engine.executor.seconds_each = 1e-4
    for tokens in range(1, 40):
        engine.scheduler.cost_model.observe(StepWork(tokens, 1, 0, 0, tokens > 9), 1e-3 + tokens * 1e-4)
    return engine


def running(engine):
    """Tenants of those that run, and how many of each."""
    tenants = [seq.group.request.tenant for seq in engine.scheduler._running]
    return {tenant: tenants.count(tenant) for tenant in tenants}


def test_with_one_tenant_everything_is_as_without_shares(fake):
    decisions = {}
    for policy in ("priority", "fair"):
        engine = fake.engine(24, max_num_seqs=5, scheduling_policy=policy)
        drawn = random.Random(1)
        for i in range(30):
            prompt = [drawn.randrange(9) for _ in range(drawn.randrange(1, 30))]
            engine.add(fake.request(f"r{i}", prompt, n=1 + i % 3, max_tokens=9, priority=i % 2))
        out = fake.run(engine)
        told = [(each.step, each.request_id, each.kind, each.reason) for each in engine.scheduler.decisions]
        decisions[policy] = out, told
    assert any(kind == "preempt" for _, _, kind, _ in decisions["fair"][1])
    assert decisions["fair"] == decisions["priority"]


def test_who_is_within_its_share_takes_the_places_of_who_is_not(fake):
    engine = ready(fake.engine(400, scheduling_policy="fair"))
    for i in range(40):
        engine.add(fake.request(f"noisy{i}", [i] * 20, max_tokens=60, tenant="noisy"))
    for _ in range(30):
        engine.step()
    assert running(engine) == {"noisy": 8}
    engine.add(fake.request("quiet", [99] * 20, max_tokens=9, tenant="quiet"))
    engine.step()
    assert running(engine) == {"noisy": 7, "quiet": 1}
    tokens = fake.run(engine)
    assert tokens["quiet"][0][-8:] == fake.expected([99] * 20, 9)[-8:]
    assert engine.scheduler.counters.preemptions >= 1


def test_a_prompt_of_who_is_over_its_share_leaves_the_chunk_to_who_is_not(fake):
    engine = ready(fake.engine(400, scheduling_policy="fair"))
    engine.add(fake.request("long", list(range(800)), max_tokens=2, tenant="noisy"))
    engine.add(fake.request("next", list(range(800, 1000)), max_tokens=2, tenant="noisy"))
    for _ in range(5):
        engine.step()
    engine.add(fake.request("quiet", [99] * 20, max_tokens=2, tenant="quiet"))
    engine.step()
    batch = fake.model(engine).batches[-1]
    assert sorted(batch.query_start[1:] - batch.query_start[:-1]) == [12, 20], "of 32 tokens"
    fake.run(engine)


def test_tenants_share_by_weight_while_both_wait(fake):
    engine = ready(fake.engine(400, scheduling_policy="fair"))
    for i in range(200):
        for tenant, weight in (("light", 1.0), ("heavy", 3.0)):
            engine.add(fake.request(f"{tenant}{i}", [i, int(weight)] * 10, max_tokens=4, tenant=tenant, weight=weight))
    done = {"light": 0, "heavy": 0}
    while min(done.values()) < 40:
        for update in engine.step():
            done[update.request_id[:5]] += update.finish_reason is not None
    assert done["heavy"] / done["light"] == pytest.approx(3, rel=0.15)


def test_priority_goes_before_shares_and_takes_nobodys_place(fake):
    engine = ready(fake.engine(400, scheduling_policy="fair"))
    for i in range(16):
        engine.add(fake.request(f"noisy{i}", [i] * 20, max_tokens=60, tenant="noisy"))
    for _ in range(30):
        engine.step()
    engine.add(fake.request("later", [99] * 20, max_tokens=2, tenant="quiet", priority=1))
    engine.step()
    assert running(engine) == {"noisy": 8}
    fake.run(engine)


def test_prompts_for_which_there_is_no_memory_at_once_all_end(fake):
    """Each takes twenty chunks, and most of the pool; if they took turns neither would ever get a token."""
    steps = {}
    for policy in ("priority", "fair"):
        engine = ready(fake.engine(190, max_num_batched_tokens=32, scheduling_policy=policy))
        for i, tenant in enumerate("abab"):
            prompt = [(7 * i + j) % 900 for j in range(640)]
            engine.add(fake.request(f"{tenant}{i}", prompt, max_tokens=20, tenant=tenant))
        out = fake.run(engine, 2000)
        assert out["a0"][0] == fake.expected([j % 900 for j in range(640)], 20)
        steps[policy] = len(fake.model(engine).batches)
    assert steps["fair"] <= 3 * steps["priority"]


ASKED = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 120), st.integers(1, 40), st.integers(0, 40)),
                 min_size=2, max_size=12)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=ASKED, blocks=st.integers(45, 90), places=st.integers(1, 6))
def test_everybody_gets_on_in_any_memory_with_any_places(fake, asked, blocks, places):
    engine = ready(fake.engine(blocks, max_num_seqs=places, scheduling_policy="fair"))
    for step in range(41):
        for number, (tenant, prompt, output, at) in enumerate(asked):
            if at == step:
                tokens = [(number + j) % 900 for j in range(prompt)]
                engine.add(fake.request(str(number), tokens, max_tokens=output, tenant=tenant))
        engine.step()
    fake.run(engine, 5000)
    assert engine.scheduler.counters.finished == len(asked)
