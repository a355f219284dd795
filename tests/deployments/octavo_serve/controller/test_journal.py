from __future__ import annotations

import threading

from octavo.scaling.policy import Reason, ScalingDecision, ScalingState
from octavo_serve.controller.journal import QUIET_SECONDS, Journal
from octavo_serve.wire.scaling import MAX_CHANGES, Scaling, decode_scaling

WHERE = "octavo", "shard-m"


class Store:
    """Where decisions are kept, and who waits for the next one."""

    def __init__(self) -> None:
        self.written: list[Scaling] = []
        self.fails = False
        self._changed = threading.Condition()

    def __call__(self, key: str, value: bytes) -> None:
        assert key == "octavo:scaling:octavo:shard-m"
        with self._changed:
            self.written.append(decode_scaling(value))
            self._changed.notify_all()
        if self.fails:
            raise ConnectionError("the GCS is gone")

    def wait_for(self, counts: dict[str, int]) -> Scaling:
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.written) and self.written[-1].counts == counts, 10)
            return self.written[-1]


def decided(replicas: int, reason: Reason = "load", demand: float = 2.5) -> ScalingDecision:
    return ScalingDecision(replicas, reason, demand, ScalingState())


def test_changes_are_kept_with_their_reasons_the_latest_of_them() -> None:
    store = Store()
    journal = Journal(store)
    for number in range(MAX_CHANGES + 1):
        journal.add(WHERE, 1000.0 + number, number, number + 1, number, decided(number + 1))
    found = store.wait_for({"load": MAX_CHANGES + 1})
    assert (found.wanted, found.running, found.reason, found.demand) == (MAX_CHANGES + 1, MAX_CHANGES, "load", 2.5)
    assert [change.after for change in found.changes] == list(range(2, MAX_CHANGES + 2))
    assert all(change.met for change in found.changes)


def test_a_change_that_is_not_all_that_was_asked_for_says_so() -> None:
    store = Store()
    Journal(store).add(WHERE, 1000.0, 1, 2, 1, decided(5))
    assert not store.wait_for({"load": 1}).changes[0].met


def test_between_changes_only_what_is_new_is_written_and_not_often() -> None:
    store = Store()
    journal = Journal(store)
    journal.add(WHERE, 1000.0, 2, 2, 2, decided(2, "kept", 1.2))
    store.wait_for({})
    for later, demand in ((1.0, 1.3), (QUIET_SECONDS, 1.2)):
        journal.add(WHERE, 1000.0 + later, 2, 2, 2, decided(2, "kept", demand))
    journal.add(WHERE, 1000.0 + QUIET_SECONDS, 2, 2, 2, decided(2, "kept", 1.3))
    journal.add(WHERE, 1001.0 + QUIET_SECONDS, 2, 1, 2, decided(1, "load", 0.9))
    assert store.wait_for({"load": 1}).demand == 0.9
    assert {one.decided_at for one in store.written} <= {1000.0, 1000.0 + QUIET_SECONDS, 1001.0 + QUIET_SECONDS}


def test_a_store_that_fails_is_tried_again_with_the_next_decision() -> None:
    store = Store()
    journal = Journal(store)
    store.fails = True
    journal.add(WHERE, 1000.0, 1, 2, 1, decided(2))
    store.wait_for({"load": 1})
    store.fails = False
    journal.add(WHERE, 1001.0, 2, 3, 2, decided(3))
    store.wait_for({"load": 2})
