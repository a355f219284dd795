"""Requests below all others take what is left over, and nobody else feels them."""

from __future__ import annotations

import pytest

from octavo.config import EngineConfig
from octavo.cost_model import Cost, CostModel
from octavo.engine.below import part_of
from octavo.engine.budget import prompt_budget
from octavo.request import BELOW_ALL


class Known(CostModel):
    """A machine of which everything is known."""

    coefficients = Cost(0.01, 1e-4, 0.0, 0.0, 0.0)  # type: ignore[assignment]  # a property there
    ready = True


def below(fake, name, prompt, **params):
    request = fake.request(name, prompt, **params)
    request.priority = BELOW_ALL
    return request


def test_they_wait_while_anything_else_runs_and_say_what_they_would_have_said(fake):
    engine = fake.engine()
    engine.add(below(fake, "batch", [1, 2, 3], max_tokens=8))
    updates = engine.step()
    engine.add(fake.request("chat", [4, 5, 6], max_tokens=8))
    updates += [update for _ in range(30) for update in engine.step()]
    names = [update.request_id for update in updates]
    first, last = names.index("chat"), len(names) - names[::-1].index("chat")
    assert names[first:last].count("batch") <= 1, "what was launched before the other came"
    for name, prompt in {"batch": [1, 2, 3], "chat": [4, 5, 6]}.items():
        tokens = [token for update in updates if update.request_id == name for token in update.token_ids]
        assert tokens == fake.expected(prompt, 8)


def test_they_give_up_places_and_blocks_at_once(fake):
    engine = fake.engine(num_blocks=40, max_num_seqs=2)
    for number in range(2):
        engine.add(below(fake, f"r{number}", [number] * 40, max_tokens=20))
    for _ in range(4):
        engine.step()
    assert engine.scheduler.running_requests() == ["r0", "r1"]
    prompt = list(range(100, 160))
    engine.add(fake.request("chat", prompt, max_tokens=2))
    engine.step()
    assert engine.scheduler.running_requests() == ["chat", "r0"]
    assert engine.scheduler.counters.preemptions == 1
    out = fake.run(engine)
    assert out["chat"][0] == fake.expected(prompt, 2)
    engine.scheduler.check_integrity()


def test_a_shard_tells_its_load_as_if_they_were_not_there(fake):
    engine = fake.engine(max_num_seqs=2)
    idle = engine.scheduler.state()
    for number in range(5):
        engine.add(below(fake, f"r{number}", list(range(9)), max_tokens=8))
    assert engine.scheduler.state() == idle
    engine.step()
    assert engine.scheduler.state() == idle
    fake.run(engine)


@pytest.mark.parametrize(("step", "beside"), [(0.0, 0), (0.01, 3), (1.0, 6)])
def test_beside_others_as_many_decode_as_make_the_step_little_longer(fake, step, beside):
    engine = fake.engine(max_num_seqs=8)
    for number in range(6):
        engine.add(below(fake, f"r{number}", [number], max_tokens=20))
    engine.step()
    engine.add(fake.request("chat", [7], max_tokens=20))
    engine.step()
    engine.step()
    model = Known()
    model.coefficients = Cost(step, 1e-4, 0.0, 0.0, 0.0)
    part = part_of(engine.scheduler._running, None, model)
    assert part == (1 + beside, beside, False)
    assert part.held(engine.scheduler._running) == 6 - beside


def test_prompts_of_theirs_make_no_step_long(fake):
    config = EngineConfig(block_size=16, max_num_batched_tokens=1000)
    assert prompt_budget([], config, Known(), alone=True) == 300
    assert prompt_budget([], config, Known()) == 1000
