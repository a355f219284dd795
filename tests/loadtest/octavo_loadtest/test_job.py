from __future__ import annotations

import ast
import importlib.util
import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from octavo_loadtest.client import Answer
from octavo_loadtest.errors import LoadTestError
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


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"api": "speech"}, "api is one of chat, completions, embeddings, not 'speech'"),
        ({"api": ""}, "api is one of"),
        ({"body": ["x"]}, r"body must be an object.* not \['x'\]"),
        ({"body": "{}"}, "body must be an object"),
        ({"timeout": 0.0}, "timeout must be above 0 s, not 0"),
        ({"timeout": -1.0}, "not -1"),
        ({"timeout": float("nan")}, "not nan"),
    ],
)
def test_a_target_that_cannot_be_asked(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LoadTestError, match=sentence):
        Target("http://a", "m", **wrong)
    with pytest.raises(LoadTestError, match=sentence):
        replace(Target("http://a", "m"), **wrong)


def test_records_that_are_shared_cannot_be_changed_and_have_defaults_of_their_own() -> None:
    one, two = Target("http://a", "m"), Target("http://b", "m")
    assert one.body is not two.body
    assert one.headers is not two.headers
    assert Outcome(0, "a", 0, 1, 2).answer is not Outcome(0, "a", 0, 1, 2).answer
    for made, name in ((one, "url"), (Turn(0, "x", 1), "text"), (Session("s", 0.0, ()), "at"),
                       (Orders(0, one, ()), "batch")):  # fmt: skip
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, "another")


def test_what_a_sender_imports_is_light() -> None:
    """Each sending process imports this and what it needs: nothing of numpy or the command line's libraries."""
    found = importlib.util.find_spec("octavo_loadtest.job")
    assert found is not None
    seen, left = set(), ["octavo_loadtest.job", "octavo_loadtest.sender"]
    while left:
        name = left.pop()
        spec = importlib.util.find_spec(name)
        if name in seen or spec is None or spec.origin is None:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("octavo_loadtest."):
                left.append(node.module or "")
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            assert not {each.split(".")[0] for each in module} & {"numpy", "rich", "typer", "yaml", "matplotlib"}, name
    assert {"octavo_loadtest.client", "octavo_loadtest.errors"} <= seen
