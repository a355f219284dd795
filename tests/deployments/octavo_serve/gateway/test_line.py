from contextlib import ExitStack

import pytest

from octavo.request import Request
from octavo_serve.gateway.line import Line


def served(policy, *requests, seconds=1.0):
    """Names in the order in which they are sent to shards, each of which keeps one busy for so long."""
    line, stacks, names = Line(), {}, []
    line.policy = policy
    for request in requests:
        stacks[request.request_id] = stack = ExitStack()
        stack.enter_context(line.joined(request))
    while (first := line.first()) is not None:
        names.append(first.request.request_id)
        line.charge(first.request, seconds)
        stacks[first.request.request_id].close()
    assert not line
    return " ".join(names)


def request(name, **settings):
    return Request(request_id=name, prompt_token_ids=[1], **settings)


@pytest.mark.parametrize(
    ("policy", "order"),
    [("fcfs", "a1 a2 a3 b1 b2 late"), ("priority", "b2 a1 a2 a3 b1 late"), ("fair", "b2 a1 a2 b1 a3 late")],
)
def test_the_order_has_a_name(policy, order):
    waiting = [
        *(request(f"a{i}", tenant="a") for i in (1, 2, 3)),
        request("b1", tenant="b"), request("b2", tenant="b", deadline=59.0), request("late", tenant="c", priority=1),
    ]  # fmt: skip
    assert served(policy, *waiting) == order


def test_weights_count():
    waiting = [request(f"{name}{i}", tenant=name, weight=w) for i in range(8) for name, w in (("l", 1.0), ("h", 3.0))]
    assert sum(name.startswith("h") for name in served("fair", *waiting).split()[:8]) == 6


def test_only_the_first_is_called():
    line = Line()
    with line.joined(request("a")) as first, line.joined(request("b")) as second:
        line.call()
        assert (first.called.is_set(), second.called.is_set()) == (True, False)
