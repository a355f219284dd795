"""What a guess makes a step longer is measured, for each number of sequences."""

from __future__ import annotations

import pytest

from octavo.cost_model import CostModel, StepWork
from octavo.engine.guess_rows import GuessRows


def work(rows: int, *, has_prompts: bool = False) -> StepWork:
    return StepWork(rows, rows, 100 * rows, 100 * rows, has_prompts)


@pytest.fixture
def model() -> CostModel:
    """Of a machine that says it takes 1 ms and 0.1 for each row."""
    model = CostModel()
    for rows in [*range(1, 20)] * 9:
        model.observe(work(rows), 1e-3 + 1e-4 * rows)
    return model


def row(rows: GuessRows, model: CostModel, sequences: int) -> float:
    return rows.seconds(model.coefficients, sequences, 100)


def test_what_is_measured_takes_the_place_of_the_slope(model):
    rows = GuessRows(model)
    assert row(rows, model, 4) == pytest.approx(1e-4, rel=0.05)
    for _ in range(40):
        rows.took(work(5), 1, 1e-3 + 9e-4)
    assert row(rows, model, 4) == pytest.approx(5e-4, rel=0.15)
    assert row(rows, model, 5) == pytest.approx(1e-4, rel=0.05)  # of so many nothing is known


def test_a_stall_counts_as_one_step_more(model):
    rows = GuessRows(model)
    rows.took(work(5), 1, 10.0)
    assert row(rows, model, 4) < 1.5e-3


def test_rows_that_are_free_cost_nothing_and_never_less(model):
    rows = GuessRows(model)
    for _ in range(200):
        rows.took(work(2), 1, 1e-4)
    assert row(rows, model, 1) == 0


def test_steps_with_prompts_say_nothing(model):
    rows = GuessRows(model)
    rows.took(work(50, has_prompts=True), 1, 1.0)
    assert row(rows, model, 49) == pytest.approx(1e-4, rel=0.05)
