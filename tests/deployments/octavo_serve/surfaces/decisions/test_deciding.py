"""How the prompts of a request run, over a model that has an opinion of every label."""

from __future__ import annotations

import math
from typing import Any

import pytest

from octavo.errors import BadRequest, EngineDead, OctavoError, Overloaded, PromptTooLong
from octavo_serve.surfaces.decisions.deciding import FAN_OUT

POLITE = {"type": "predicate", "name": "polite", "instructions": "The customer is polite."}
KIND = {
    "type": "choice",
    "instructions": "What is it about?",
    "choices": [{"value": "billing", "description": "money"}, {"value": True}, {"value": "true"}],
}
URGENCY = {"type": "score", "name": "urgency", "instructions": "How urgent?", "levels": [{"label": x} for x in "abc"]}
MANY = {"type": "choice", "instructions": "Which?", "choices": [{"value": f"option {i}"} for i in range(255)]}


def test_the_probabilities_are_the_softmax_of_the_labels(ask: Any, client: Any) -> None:
    told = ask.decisions(POLITE)
    (request,) = client.opened
    yes, no = (client.opinion(request.prompt_token_ids, token) for token in request.params.logprob_token_ids)
    assert told["answers"][0]["probability"] == pytest.approx(math.exp(yes) / (math.exp(yes) + math.exp(no)))


def test_the_state_is_computed_first_and_alone(ask: Any, client: Any) -> None:
    ask.decisions(POLITE, KIND, URGENCY, prompt_cache_key="team")
    first, *others = client.opened
    assert first.params.max_tokens == 0
    assert len(others) == 3
    for request in others:
        assert request.params.max_tokens == 1
        assert request.prompt_token_ids[: len(first.prompt_token_ids)] == first.prompt_token_ids
        assert request.block_hashes[: len(first.block_hashes)] == first.block_hashes
        assert len(request.block_hashes) == len(request.prompt_token_ids) // 16
    assert {request.session for request in client.opened} == {"team"}


def test_requests_without_a_key_stay_together_too(ask: Any, client: Any) -> None:
    ask.decisions(POLITE, KIND)
    assert len({request.session for request in client.opened}) == 1
    assert client.opened[0].session
    ask.decisions(POLITE, session="header", prompt_cache_key="key")
    assert client.opened[-1].session == "header"


def test_a_question_is_answered_alike_whatever_is_asked_beside_it(ask: Any) -> None:
    questions = [POLITE, KIND, URGENCY, MANY]
    together = ask.decisions(*questions)["answers"]
    assert ask.decisions(*reversed(questions))["answers"] == together[::-1]
    assert [ask.decisions(question)["answers"][0] for question in questions] == together


def test_many_options_take_a_letter_and_a_digit(ask: Any, client: Any) -> None:
    (told,) = ask.decisions(MANY)["answers"]
    assert [entry["value"] for entry in told["probabilities"]] == [f"option {i}" for i in range(255)]
    assert math.fsum(entry["probability"] for entry in told["probabilities"]) == pytest.approx(1)
    state, letters, *rest = client.opened
    assert (state.params.max_tokens, len(rest)) == (0, 26)
    assert len(letters.params.logprob_token_ids) == 26
    assert [len(request.params.logprob_token_ids) for request in rest] == [10] * 25 + [5]
    for letter, request in zip(letters.params.logprob_token_ids, rest, strict=True):
        assert request.prompt_token_ids == [*letters.prompt_token_ids, letter]
    third = rest[2]
    logprob = client.opinion(letters.prompt_token_ids, letters.params.logprob_token_ids[2])
    logprob += client.opinion(third.prompt_token_ids, third.params.logprob_token_ids[3])
    first = client.opinion(letters.prompt_token_ids, letters.params.logprob_token_ids[0])
    first += client.opinion(rest[0].prompt_token_ids, rest[0].params.logprob_token_ids[0])
    ratio = told["probabilities"][23]["probability"] / told["probabilities"][0]["probability"]
    assert ratio == pytest.approx(math.exp(logprob - first))


def test_400_questions(ask: Any, client: Any) -> None:
    questions = [POLITE | {"name": f"{i}", "instructions": f"Statement {i}"} for i in range(400)]
    client.turns = 2 * FAN_OUT
    told = ask.decisions(*questions)
    assert [answer["name"] for answer in told["answers"]] == [f"{i}" for i in range(400)]
    assert len({answer["probability"] for answer in told["answers"]}) == 400
    assert len(client.opened) == 401
    assert client.most == FAN_OUT
    assert client.running == 0


def test_too_many_options_in_all(ask: Any, client: Any) -> None:
    with pytest.raises(BadRequest, match="take 4104 prompts; at most 4096"):
        ask.decisions(*[MANY] * 152)
    assert not client.opened


@pytest.mark.parametrize("fault", ["broken", "nan"])
def test_a_question_that_fails_is_refused_and_the_others_are_answered(ask: Any, client: Any, fault: str) -> None:
    setattr(client, fault, "polite")
    refused, kind = ask.decisions(POLITE, KIND)["answers"]
    assert refused == {"type": "refusal", "name": "polite"}
    assert kind["type"] == "choice"
    told = ask.system_one(
        {
            "a": {"type": "noul", "instructions": "polite?"},
            "b": {"type": "noul", "instructions": "urgent?"},
        }
    )
    assert list(told["answers"]) == ["b"]


def test_one_of_the_prompts_of_a_question_fails(ask: Any, client: Any) -> None:
    client.broken = "assistant\nC"  # the prompts that go on after a letter
    answers = ask.decisions(MANY, POLITE)["answers"]
    assert [answer["type"] for answer in answers] == ["refusal", "predicate"]
    assert client.running == 0


def test_where_all_fail_the_request_does(ask: Any, client: Any) -> None:
    client.broken = ""
    with pytest.raises(OctavoError, match="not a number"):
        ask.decisions(POLITE, KIND)


@pytest.mark.parametrize("error", [Overloaded("full", retry_after=1.0), EngineDead("gone")])
def test_a_fault_of_the_server_ends_all(ask: Any, client: Any, error: Exception) -> None:
    client.refused = {"polite": error}
    with pytest.raises(type(error)):
        ask.decisions(MANY, POLITE, KIND)
    assert client.running == 0


def test_an_overloaded_model_refuses_before_anything_is_rendered(ask: Any, client: Any) -> None:
    client.full = Overloaded("full", retry_after=1.0)
    with pytest.raises(Overloaded):
        ask.decisions(POLITE, KIND)
    ((sequences, tokens),) = client.sizes
    assert sequences == 2
    assert tokens >= 100
    assert not client.opened


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "word " * 5000}, "input"),
        ({"questions": [POLITE, POLITE | {"instructions": "word " * 4090}]}, "questions[1]"),
        ({"questions": [KIND | {"choices": [{"value": "word " * 4090}, {"value": "b"}]}]}, "questions[0]"),
    ],
)
def test_what_the_context_cannot_hold_is_named(ask: Any, client: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(PromptTooLong) as refused:
        ask.decisions(*fields.pop("questions", [POLITE]), **fields)
    assert refused.value.param == param
    assert not client.opened
