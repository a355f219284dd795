"""Decision records: who waited, why, and each wait once."""

from __future__ import annotations

from octavo.engine.decisions import Decision, DecisionLog


def wait(step, name, reason="no blocks"):
    return Decision(step, float(step), name, 0, "wait", reason, {})


def test_a_wait_is_noted_once_per_reason_until_something_else_waits_or_starts():
    log = DecisionLog()
    for step in range(3):
        log.add(wait(step, "a"))
    log.add(wait(3, "a", "no running place"))
    log.add(wait(4, "b", "no running place"))
    log.add(wait(5, "a", "no running place"))
    log.add(Decision(6, 6.0, "a", 0, "admit", "fits", {}))
    log.add(wait(7, "a", "no running place"))
    assert [d.step for d in log] == [0, 3, 4, 5, 6, 7]


def test_that_a_sequence_gets_nothing_is_noted_once_until_it_gets_something():
    log = DecisionLog()
    for step, kind in enumerate(["shrink", "shrink", "chunk", "shrink"]):
        log.add(Decision(step, float(step), "a", 0, kind, "no budget left", {}))
    assert [d.step for d in log] == [0, 2, 3]


def test_the_oldest_records_go():
    log = DecisionLog(capacity=3)
    for step in range(5):
        log.add(Decision(step, 0.0, f"r{step}", 0, "finish", "length", {}))
    assert [d.request_id for d in log] == ["r2", "r3", "r4"]
    assert log.of("r0") == []


def test_decisions_say_who_waited_and_why(fake):
    engine = fake.engine(max_num_seqs=1)
    engine.add(fake.request("a", [1, 2], max_tokens=3))
    engine.add(fake.request("b", [1, 2], max_tokens=3))
    fake.run(engine)
    assert [(d.kind, d.reason) for d in engine.scheduler.decisions.of("b")] == [
        ("queue", "new"),
        ("wait", "no running place"),
        ("admit", "fits"),
        ("token", "computed"),
        ("finish", "length"),
    ]
