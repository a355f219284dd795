import math

import pytest

from octavo import fairness
from octavo.fairness import MOST_TENANTS, PATIENT, TURN, Shares, gives_way, place_of

# name, priority, deadline, came at, resumed
ASKED = [("a", 1, None, 0.0, False), ("b", 0, None, 1.0, False), ("c", 0, 0.5, 2.0, False), ("d", 0, 90.0, 3.0, False),
         ("e", 0, 0.5, 4.0, True), ("f", 1, 0.5, 5.0, False)]  # fmt: skip


@pytest.mark.parametrize(("policy", "order"), [("fcfs", "eabcdf"), ("priority", "ecbdfa"), ("fair", "ecbdfa")])
def test_the_order_of_one_tenant(policy, order):
    places = {
        place_of(policy, priority, deadline, now, number, resumed=resumed): name
        for number, (name, priority, deadline, now, resumed) in enumerate(ASKED)
    }
    assert "".join(places[place] for place in sorted(places)) == order


def test_who_has_no_deadline_is_not_starved_by_those_who_have():
    first = place_of("priority", 0, None, 0.0, 1)
    assert place_of("priority", 0, 1.0, PATIENT - 2, 2) < first < place_of("priority", 0, 1.0, PATIENT, 3)


@pytest.mark.parametrize(
    ("level", "other", "weight", "gives"),
    [(5.0, 5.0, 1.0, False), (5.8, 5.0, 1.0, False), (5.9, 5.0, 1.0, True), (5.9, 5.0, 0.5, False),
     (5.5, 5.0, 2.0, True), (5.0, 9.0, 1.0, False)],
)  # fmt: skip
def test_who_gives_way_where_a_step_takes_a_tenth_of_a_second(level, other, weight, gives):
    assert TURN == 8
    assert gives_way(level, other, weight, 0.1) == gives


def test_who_comes_back_has_a_turn_and_has_saved_nothing_else_up():
    shares = Shares()
    shares.waits("busy", 2.0)
    for _ in range(100):
        shares.charge({"busy": 2.0}, {"busy": 2.0})
    shares.waits("back", 4.0)
    assert shares.level("busy") == 100
    assert shares.level("back") == 99 - TURN * 2.0 / 4.0
    assert gives_way(shares.level("busy"), shares.level("back"), 4.0, shares.step)
    shares.charge({"back": 400.0}, {"back": 4.0})
    shares.served("back")
    shares.waits("back", 4.0)
    assert shares.level("back") == 199 - TURN * 2.0 / 4.0, "nor has it got rid of anything"


def test_newcomers_do_not_outbid_each_other():
    shares = Shares()
    shares.waits("busy", 1.0)
    shares.charge({"busy": 3.0}, {"busy": 1.0})
    for number in range(9):
        shares.waits(str(number), 1.0)
        shares.charge({"busy": 3.0}, {"busy": 1.0})
    assert {shares.level(str(number)) for number in range(9)} == {-TURN * 3.0}


def test_nothing_is_remembered_of_a_time_when_nobody_waited():
    shares = Shares()
    shares.waits("a", 1.0)
    shares.charge({"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 1.0})
    shares.served("a")
    shares.charge({"a": 9.0}, {"a": 1.0})
    shares.waits("b", 1.0)
    shares.waits("a", 1.0)
    assert shares.level("a") == shares.level("b") < 0


def test_the_levels_of_any_number_of_tenants_are_bounded():
    shares = Shares()
    shares.waits("busy", 1.0)
    for number in range(3 * MOST_TENANTS):
        shares.waits(str(number), 1.0)
        shares.charge({str(number): 1e6 + number}, {str(number): 1.0})
        shares.served(str(number))
    assert len(shares._levels) <= MOST_TENANTS + 2
    assert shares.level(str(3 * MOST_TENANTS - 1)) > 1e6 - TURN * 2e6, "who has had most is not forgotten"


def test_the_names_are_those_of_the_setting():
    assert fairness.SchedulingPolicy.__args__ == ("fcfs", "priority", "fair")
    assert place_of("fcfs", 5, 1.0, 2.0, 3) == (0, 0.0, 3)
    assert place_of("fcfs", 5, 1.0, 2.0, 3, resumed=True).due == -math.inf
