import itertools

import pytest

from octavo.engine.deadlines import Deadlines
from octavo.fairness import PATIENT


def clocked(fake, **settings):
    """An engine whose clock goes on by a second with every look at it."""
    engine = fake.engine(**settings)
    now = itertools.count()
    engine.scheduler._clock = lambda: float(next(now))
    return engine


def test_who_has_not_begun_by_its_deadline_is_dropped_and_who_has_is_finished(fake):
    engine = clocked(fake, max_num_seqs=1)
    engine.add(fake.request("runs", [1, 2, 3], max_tokens=200, deadline=9.0))
    engine.add(fake.request("late", [4, 5, 6], max_tokens=2, deadline=50.0, n=2))
    engine.add(fake.request("patient", [7, 8, 9], max_tokens=2))
    ended = {}
    while engine.has_work:
        for update in engine.step():
            if update.finish_reason is not None:
                ended[update.request_id] = update.finish_reason, update.stop_reason
    assert ended["runs"] == ended["patient"] == ("length", None)
    assert ended["late"] == ("late", "it had not begun 50 s after it came, its deadline")
    engine.check_integrity()


@pytest.mark.parametrize("deadline", [1.0, 5.0, 9.0, 13.0, 17.0, 21.0, 25.0])
def test_who_is_to_be_tried_alone_may_be_dropped_at_any_time(fake, deadline):
    engine, ended = clocked(fake, max_num_seqs=2), {}
    for name in ("a", "b"):
        engine.add(fake.request(name, [1, 2, 3], max_tokens=9))
    for name in ("c", "d", "e"):
        suspect = fake.request(name, [4, 5, 6], max_tokens=4, deadline=deadline)
        suspect.alone = True
        engine.add(suspect)
    while engine.has_work:
        ended |= {update.request_id: update.finish_reason for update in engine.step() if update.finish_reason}
    assert ended["a"] == ended["b"] == "length"
    assert set(ended.values()) <= {"length", "late"}
    assert len(ended) == 5
    assert not engine.isolation.active


def test_whose_deadline_comes_first_runs_first(fake):
    engine = fake.engine(max_num_seqs=1)
    for name, deadline in (("none", None), ("later", 50.0), ("soon", 40.0), ("latest", PATIENT + 9)):
        engine.add(fake.request(name, [1, 2, 3], max_tokens=2, deadline=deadline))
    first = list(dict.fromkeys(update.request_id for _ in range(12) for update in engine.step()))
    assert first == ["soon", "later", "none", "latest"]


def test_those_that_have_ended_are_forgotten(fake):
    engine, deadlines = fake.engine(), Deadlines()
    for i in range(1000):
        engine.add(fake.request(f"r{i}", [1, 2, 3], max_tokens=1))
        deadlines.add(float(i), engine.scheduler._groups[f"r{i}"], 1)
        engine.abort(f"r{i}")
    assert len(deadlines) < 70
