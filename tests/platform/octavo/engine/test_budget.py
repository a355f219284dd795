from __future__ import annotations

import pytest

from octavo.config import EngineConfig
from octavo.cost_model import Cost, CostModel
from octavo.engine.budget import prompt_budget


class Known(CostModel):
    """A machine of which everything is known."""

    coefficients = Cost(0.01, 1e-4, 0.0, 0.0, 0.0)  # type: ignore[assignment]  # a property there
    ready = True


@pytest.mark.parametrize(
    ("tokens", "target", "decoding", "budget"),
    [
        (1000, None, 0, 1000),
        (1000, None, 6, 994),
        (1000, 0.0506, 6, 400),  # 10 ms a step, 0.1 ms a token
        (1000, 0.0506, 0, 1000),  # nobody waits for its next token
        (1000, 0.001, 6, 16),  # a target that cannot be met does not stop prompts
        (16, None, 6, 16),
        (10, None, 6, 10),
    ],
)
def test_what_prompts_may_share(fake, tokens, target, decoding, budget):
    engine = fake.engine()
    for i in range(decoding):
        engine.add(fake.request(f"r{i}", [i], max_tokens=9))
    engine.step()
    engine.add(fake.request("prompt", [1, 2, 3], max_tokens=9))
    config = EngineConfig(block_size=16, max_num_batched_tokens=tokens, target_itl=target)
    assert prompt_budget(engine.scheduler._running, config, Known()) == budget
