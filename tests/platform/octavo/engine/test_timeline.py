"""Where a request's time went: causes that sum to it, whatever happened."""

from __future__ import annotations

import itertools

import pytest

from octavo.engine.decisions import Decision
from octavo.engine.timeline import MAX_SPANS, courses

ARRIVAL = (1, "arrive"), (1, "compile"), (3, "compiled")


def records(*told):
    """(time, request, kind, reason or number of tokens) each."""
    return [
        Decision(int(time), float(time), name, 0, kind, str(what), numbers(what)) for time, name, kind, what in told
    ]


def numbers(what):
    return {"tokens": what, "cached": 0} if isinstance(what, int) else {}


def spans(course):
    return [(span.what, span.cause, span.start, span.seconds) for span in course.spans]


def test_who_is_not_first_waits_for_what_the_first_one_waits_for():
    told = records(
        (1, "a", "queue", "new"), (1, "a", "wait", "no running place"),
        (2, "me", "queue", "new"), (4, "a", "wait", "no KV blocks"), (5, "a", "admit", 9),
        (5, "me", "wait", "no budget left"), (7, "me", "admit", 4), (8, "me", "chunk", 3),
        (9, "me", "token", "computed"), (12, "me", "finish", "stop"),
    )  # fmt: skip
    course = courses(told, (), "me", 20.0)[0]
    assert spans(course) == [
        ("wait", "place", 0.0, 2.0), ("wait", "blocks", 2.0, 1.0), ("wait", "budget", 3.0, 2.0),
        ("prefill", "", 5.0, 1.0), ("prefill", "", 6.0, 1.0), ("decode", "", 7.0, 3.0),
    ]  # fmt: skip
    assert (course.causes, course.seconds) == ({"place": 2.0, "blocks": 1.0, "budget": 2.0}, 10.0)
    assert [span.by for span in course.spans[:3]] == ["a", "a", ""]
    assert (course.spans[1].others, course.over, course.steps) == (1, "stop", 3)


def test_what_was_aborted_holds_up_nobody_who_comes_later():
    told = records((1, "a", "queue", "new"), (1, "a", "wait", "no running place"), (2, "a", "finish", "abort"),
                   (3, "me", "queue", "new"), (4, "me", "admit", 9))  # fmt: skip
    assert spans(courses(told, (), "me", 5.0)[0]) == [("wait", "engine", 0.0, 1.0), ("prefill", "", 1.0, 1.0)]


def test_what_comes_before_the_queue_counts():
    before = [Decision(0, time, "me", -1, kind, kind, {}) for time, kind in ARRIVAL]
    told = records((4, "me", "queue", "new"), (4, "me", "admit", 9), (6, "me", "token", "computed"))
    course = courses(told, before, "me", 6.5)[0]
    assert (course.causes, course.seconds) == ({"engine": 1.0, "grammar": 2.0}, 5.5)
    assert courses([], before, "me", 3.0)[0].causes == {"grammar": 2.0}
    assert courses(told, before, "other", 9.0) == {}


def test_many_spans_are_told_as_one():
    told = records((0, "me", "queue", "new"), *((time, "me", "chunk", 2) for time in range(1, 1000)))
    course = courses(told, (), "me", 1000.0)[0]
    assert (len(course.spans), course.seconds) == (MAX_SPANS, 1000.0)
    assert sum(span.tokens for span in course.spans) == 2 * 999


@pytest.mark.parametrize(
    ("settings", "prompts", "causes"),
    [
        ({"max_num_seqs": 1}, [(4, 8), (4, 8), (4, 2)], {"place"}),
        ({"max_num_batched_tokens": 8}, [(40, 4), (40, 4)], {"budget"}),
        ({"num_blocks": 20}, [(40, 16), (40, 16), (20, 4)], {"blocks"}),
        ({"num_blocks": 26}, [(40, 60), (40, 60)], {"preempted"}),
    ],
)
def test_causes_sum_to_the_time_and_name_what_held_a_request_up(fake, settings, prompts, causes):
    engine = fake.engine(**settings)
    now = itertools.count(1)
    engine.scheduler._clock = lambda: float(next(now))
    began = {}
    for number, (length, tokens) in enumerate(prompts):
        name = f"r{number}"
        began[name] = engine.scheduler._clock() + 1
        engine.add(fake.request(name, [number * 100 + each for each in range(length)], max_tokens=tokens))
    fake.run(engine)
    last = None
    for name, at in began.items():
        last = engine.courses(name)[0]
        ended = engine.scheduler.decisions.of(name)[-1].time
        assert last.over == "length"
        assert last.seconds == pytest.approx(ended - at, abs=1)
        assert sum(last.causes.values()) + sum(s.seconds for s in last.spans if s.what != "wait") == last.seconds
        assert all(a.start + a.seconds == b.start for a, b in itertools.pairwise(last.spans))
    assert last is not None
    assert causes <= {cause for cause, seconds in last.causes.items() if seconds}
