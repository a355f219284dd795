import pytest

from octavo.cost_model import CostModel, StepWork
from octavo.engine.patience import FIRST, IDLE, LEAST, LONGEST_LOOK, TRIES, Patience, Silence


def work(tokens, sequences, attended=0):
    return StepWork(tokens, sequences, attended or tokens, attended or tokens, has_prompts=tokens > sequences)


def ready(steps):
    """After steps of (tokens, sequences, seconds)."""
    model = CostModel()
    patience = Patience(model)
    for tokens, sequences, seconds in steps:
        patience.observe(work(tokens, sequences), seconds)
        model.observe(work(tokens, sequences), seconds)
    return patience


@pytest.mark.parametrize(
    ("seen", "tokens", "honest"),
    [
        ([], 1024, 65.0),  # an 8B model on two cores, its first step
        ([], 8192, 520.0),
        ([(1, 1, 0.55)] * 20, 1024, 65.0),  # a prompt after nothing but decoding
        ([(32, 32, 1.6)] * 20, 1024, 65.0),
        ([(1024, 1, 65.0)] * 9, 1024, 5 * 65.0),  # a machine that others use too
        ([(1024, 1, 0.01)] * 9, 1, 0.9 * FIRST),  # other kernels
        ([(16, 16, 0.005)] * 50 + [(16, 16, 1.0)], 16, 9.0),  # the load has come, and may come again
    ],
    ids=str,
)
def test_an_honest_step_is_waited_for(seen, tokens, honest):
    assert ready(seen).seconds(work(tokens, 1 if tokens != 16 else 16)) > honest


def test_a_short_step_that_hangs_is_noticed_within_seconds():
    assert ready([(16, 16, 0.005)] * 50).seconds(work(16, 16)) == LEAST
    assert ready([(1024, 1, 0.01), (16, 16, 0.01)] * 9).seconds(work(1000, 1, 9999)) > LEAST  # of another kind
    assert ready([(1024, 1, 65.0)] * 9).seconds(work(1024, 1)) < 15 * 65
    assert ready([]).seconds(work(1, 1)) < 2 * FIRST


def test_what_a_loaded_machine_was_late_is_forgotten_when_the_load_has_gone():
    late = [(16, 16, 1.0)]
    assert ready([(16, 16, 0.005)] * 50 + late + [(16, 16, 0.005)] * 2000).seconds(work(16, 16)) == LEAST


def test_the_first_steps_of_a_kind_are_patient():
    patience = ready([(16, 16, 0.005)] * (TRIES - 1))
    assert patience.seconds(work(16, 16)) > FIRST
    patience.observe(work(16, 16), 20.0)  # it compiled something
    for _ in range(100):
        patience.observe(work(16, 16), 0.005)
    assert patience.seconds(work(16, 16)) == LEAST  # and that is no reason to wait later


def test_a_step_after_a_long_rest_is_patient():
    patience = ready([(16, 16, 0.005)] * 50)
    assert patience.seconds(work(16, 16), idle=IDLE + 1) > FIRST
    assert patience.seconds(work(16, 16), idle=IDLE - 1) == LEAST


def test_only_seconds_in_which_somebody_looked_count():
    now = 0.0
    silence = Silence(lambda: now)
    assert silence.since(0.0) == 0.0
    for _ in range(4):
        now += 0.5
        silent = silence.since(0.0)
    assert silent == 2.0
    now += 3600  # the machine slept
    assert silence.since(0.0) == 2.0 + LONGEST_LOOK
    now += 0.5
    assert silence.since(now) == 0.0  # the engine has said something
