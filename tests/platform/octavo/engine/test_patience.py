import pytest

from octavo.cost_model import CostModel, StepWork
from octavo.engine.patience import LEAST, Patience


def work(tokens, sequences, attended=0):
    return StepWork(tokens, sequences, attended or tokens, attended or tokens, has_prompts=tokens > sequences)


def ready(steps):
    """After steps of (tokens, sequences, seconds)."""
    model = CostModel()
    patience = Patience(model)
    for tokens, sequences, seconds in steps:
        model.observe(work(tokens, sequences), seconds)
        patience.observe(tokens, seconds)
    return patience


@pytest.mark.parametrize(
    ("seen", "tokens", "honest"),
    [
        ([], 1024, 65.0),  # an 8B model on two cores, its first step
        ([], 8192, 520.0),
        ([(1, 1, 0.55)] * 20, 1024, 65.0),  # a prompt after nothing but decoding
        ([(32, 32, 1.6)] * 20, 1024, 65.0),
        ([(1024, 1, 65.0)] * 9, 1024, 5 * 65.0),  # a machine that others use too
        ([(1024, 1, 0.01)] * 9, 1, 0.9 * LEAST),
    ],
    ids=str,
)
def test_an_honest_step_is_waited_for(seen, tokens, honest):
    assert ready(seen).seconds(work(tokens, 1)) > honest


def test_a_step_that_hangs_is_not_waited_for_for_ever():
    assert ready([]).seconds(work(1, 1)) < 2 * LEAST
    assert ready([(1024, 1, 0.01), (16, 16, 0.01)] * 9).seconds(work(1024, 8, 9999)) == LEAST
    assert ready([(1024, 1, 65.0)] * 9).seconds(work(1024, 1)) < 15 * 65
