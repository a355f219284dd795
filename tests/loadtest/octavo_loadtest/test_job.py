from __future__ import annotations

import pickle
from dataclasses import replace

from octavo_loadtest.client import Answer
from octavo_loadtest.job import PATHS, Orders, Outcome, Pulse, Session, Target, Turn


def test_every_api_has_its_path() -> None:
    assert [Target("http://a", "m", api).path for api in PATHS] == list(PATHS.values())
    assert Target("http://a", "m").path == "/v1/chat/completions"


def test_what_goes_to_a_sender_and_back_survives_the_pipe() -> None:
    turns = (Turn(0, "Hi", 5, 0.0, 9, 2), Turn(1, "And?", 4, 1.5, 20, 14))
    target = Target("http://a", "m", headers={"x": "y"}, body={"temperature": 0})
    orders = Orders(0, target, (Session("a", 0.5, turns),), False, 3, 0, 9.0, 1.0)
    answer = Answer()
    answer.status, answer.first_byte, answer.end = 200, 7, 9
    answer.reads.append((7, b"data: {}\n\n"))
    outcome = Outcome(0, "a", 0, 5, 6, 7, answer, "http 503")
    pulse = Pulse(0, 3, 2, 0.1, 0.2, [0.001], 99)
    for message in (orders, outcome, pulse):
        again = pickle.loads(pickle.dumps(message))
        assert type(again) is type(message)
        assert repr(again) == repr(message)
    assert replace(target, api="completions").path == "/v1/completions"
