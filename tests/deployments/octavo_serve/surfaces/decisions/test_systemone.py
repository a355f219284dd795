"""TypeSafe's words for the same questions."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest

POLITE = {"type": "predicate", "name": "polite", "instructions": "The customer is polite."}
KIND = {
    "type": "choice",
    "instructions": "What is it about?",
    "choices": [{"value": "billing", "description": "money"}, {"value": True}, {"value": "true"}],
}
URGENCY = {"type": "score", "name": "urgency", "instructions": "How urgent?", "levels": [{"label": x} for x in "abc"]}
MANY = {"type": "choice", "instructions": "Which?", "choices": [{"value": f"option {i}"} for i in range(255)]}
STATE = "I was charged twice for my order."


def test_system_one(ask: Any, client: Any) -> None:
    client.cached_tokens = 32
    told = ask.system_one(
        {
            "urgent": {"type": "noul", "instructions": "Urgent?", "criteria": {"true": "today", "false": None}},
            "kind": {"type": "choice", "instructions": {"ask": "What?"}, "criteria": {"a": "first", "b": None}},
            "level": {"type": "score", "instructions": "How?", "criteria": ["low", {"name": "mid"}, "high"]},
        },
        state={"messages": [STATE, 1, None]},
    )
    urgent, kind, level = told["answers"].values()
    assert list(told["answers"]) == ["urgent", "kind", "level"]
    assert (urgent["type"], urgent.keys()) == ("noul", {"type", "noul"})
    assert kind["choice"] == max(kind["probabilities"], key=kind["probabilities"].__getitem__)
    assert level["legend"] == {"0": "low", "1": '{"name":"mid"}', "2": "high"}
    assert level["score"] == pytest.approx(sum(int(i) * p for i, p in level["probabilities"].items()))
    prompts = [client.text(request) for request in client.opened]
    assert all('{"messages":["I was charged' in prompt for prompt in prompts)
    assert "Yes means: today" in prompts[1]
    assert '{"ask":"What?"}' in prompts[2]
    assert told["usage"]["cached_tokens"] == 32
    assert told["usage"]["output_tokens"] == 0


def test_both_apis_ask_the_same(ask: Any) -> None:
    ours = ask.decisions(POLITE, URGENCY)["answers"]
    theirs = ask.system_one(
        {
            "polite": {"type": "noul", "instructions": POLITE["instructions"]},
            "urgency": {"type": "score", "instructions": URGENCY["instructions"], "criteria": ["a", "b", "c"]},
        }
    )["answers"]
    assert theirs["polite"]["noul"] == ours[0]["probability"]
    assert theirs["urgency"]["score"] == ours[1]["score"]
    assert theirs["urgency"]["confidence"] == ours[1]["confidence"]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"type": "box", "instructions": "where?"}, "the models here read text"),
        ({"type": "noul"}, "instructions' is required"),
        ({"type": "noul", "instructions": " "}, "must not be empty"),
        ({"type": "noul", "instructions": "x", "criteria": {"maybe": "x"}}, "criteria"),
        ({"type": "choice", "instructions": "x", "criteria": {}}, "must not be empty"),
        ({"type": "choice", "instructions": "x", "criteria": {"": None}}, "empty option"),
        ({"type": "score", "instructions": "x", "criteria": []}, "must not be empty"),
    ],
)
def test_what_system_one_refuses(ask: Any, question: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        ask.system_one({"a": question})
