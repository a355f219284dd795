"""What guesses make a step longer is measured, for each number of sequences and of guesses."""

from __future__ import annotations

import pytest

from octavo.cost_model import CostModel, StepWork
from octavo.engine.guess_rows import GuessRows


def work(rows: int, *, has_prompts: bool = False) -> StepWork:
    return StepWork(rows, rows, 100 * rows, 100 * rows, has_prompts)


@pytest.fixture
def rows() -> GuessRows:
    """On a machine of which it is known that a step takes 1 ms and 0.1 for each row."""
    model = CostModel()
    for rows in [*range(1, 20)] * 9:
        model.observe(work(rows), 1e-3 + 1e-4 * rows)
    return GuessRows(model)


def seconds(rows: GuessRows, sequences: int, guesses: int) -> float:
    rows.price(work(sequences))
    return rows.seconds(guesses)


def test_what_is_measured_takes_the_place_of_the_slope(rows):
    assert seconds(rows, 4, 3) == pytest.approx(3e-4, rel=0.05)
    for _ in range(40):
        rows.took(work(5), 1, 1e-3 + 9e-4)
    assert seconds(rows, 4, 1) == pytest.approx(5e-4, rel=0.15)
    assert seconds(rows, 5, 1) == pytest.approx(1e-4, rel=0.05)  # of so many nothing is known


def test_each_stair_has_its_own_height(rows):
    """A fifth row is nearly free, a sixth is not; what a seventh takes is not known, so it comes to that."""
    for _ in range(40):
        rows.took(work(5), 1, 1.4e-3 + 1e-5)
        rows.took(work(6), 2, 1.4e-3 + 8e-4)
    assert [round(1e5 * seconds(rows, 4, guesses)) for guesses in (0, 1, 2, 3)] == pytest.approx([0, 1, 77, 87], abs=3)


def test_many_guesses_that_take_several_steps_count_as_they_are(rows):
    for _ in range(40):
        rows.took(work(33), 32, 8e-3)
    assert seconds(rows, 1, 32) == pytest.approx(8e-3 - 1.1e-3, rel=0.1)


def test_what_the_slope_says_of_plain_steps_is_corrected_by_them(rows):
    """Steps of four take twice what is predicted: so does a step with a guess that is free."""
    for _ in range(300):
        rows.took(work(4), 0, 2 * 1.4e-3)
    for _ in range(40):
        rows.took(work(5), 1, 2 * 1.4e-3)
    assert rows.without(work(4)) == pytest.approx(2.8e-3, rel=0.05)
    assert seconds(rows, 4, 1) < 5e-5


def test_a_stall_counts_as_little_more_than_was_known(rows):
    rows.took(work(5), 1, 10.0)
    assert seconds(rows, 4, 1) < 4e-4
    for _ in range(4):
        rows.took(work(4), 0, 10.0)
    assert rows.without(work(4)) < 1.2 * 1.4e-3


def test_rows_that_are_free_cost_nothing_and_never_less(rows):
    for _ in range(200):
        rows.took(work(2), 1, 1e-4)
    assert seconds(rows, 1, 1) == 0


def test_steps_with_prompts_say_nothing(rows):
    rows.took(work(50, has_prompts=True), 1, 1.0)
    assert seconds(rows, 49, 1) == pytest.approx(1e-4, rel=0.05)


def test_what_looked_dear_is_forgotten_while_other_steps_run(rows):
    """Guesses that are dear are not tried: nothing else would tell that they are no longer."""
    for _ in range(40):
        rows.took(work(5), 1, 5e-3)
    assert seconds(rows, 4, 1) > 1e-3
    for _ in range(800):
        rows.took(work(4), 0, 1.4e-3)
    assert seconds(rows, 4, 1) < 2e-4
