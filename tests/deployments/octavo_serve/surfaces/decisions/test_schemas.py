"""Everything that OpenAI's SDK can send is read, and it reads what is answered."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from openai.types import Decision as TheirDecision
from openai.types import decision_create_params as theirs
from openai.types.decision_input_image_param import DecisionInputImageParam
from openai.types.decision_input_text_param import DecisionInputTextParam
from openai.types.shared_params import DecisionInputJSON, DecisionQuestionInputText
from pydantic import TypeAdapter

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.surfaces.decisions import schemas
from octavo_serve.surfaces.decisions.schemas import Decision, DecisionRequest

BREAK = {"mode": "explicit"}
TEXT = {"type": "input_text", "text": "Hello"}
BODY: dict[str, Any] = {
    "model": "tiny",
    "input": [
        {"role": "system", "type": "message", "content": "Be fair."},
        {"role": "developer", "content": [TEXT | {"prompt_cache_breakpoint": BREAK}]},
        {"role": "user", "content": [TEXT, {"type": "input_json", "data": [{"a": [1, None, "x"]}]}], "type": "message"},
        {
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Well"}, {"type": "refusal", "refusal": "No."}],
            "phase": "commentary",
            "type": "message",
        },
        {
            "type": "function_call",
            "arguments": '{"a": 1}',
            "call_id": "c1",
            "name": "look",
            "id": None,
            "namespace": "files",
            "status": "completed",
        },
        {"type": "function_call_output", "call_id": "c1", "output": [TEXT], "id": "o1", "status": "completed"},
        {
            "type": "custom_tool_call",
            "call_id": "c2",
            "input": "ls",
            "name": "shell",
            "id": "i2",
            "namespace": None,
            "status": None,
        },
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "a.txt", "id": None, "status": None},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Thanks."},
    ],
    "questions": [
        {"type": "predicate", "instructions": "The user is polite.", "name": "polite"},
        {
            "type": "choice",
            "instructions": [{"type": "input_text", "text": "Which?"}, {"type": "input_json", "data": {"b": 2}}],
            "choices": [{"value": True, "description": "indeed"}, {"value": "true"}, {"value": False}],
            "name": "kind",
        },
        {"type": "score", "instructions": "How?", "levels": [{"label": "low", "description": "x"}, {"label": "high"}]},
    ],
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "safety_identifier": "u",
}


def test_the_body_is_one_that_the_sdk_can_send() -> None:
    TypeAdapter(theirs.DecisionCreateParams).validate_python(BODY)


def test_it_is_read_as_a_whole() -> None:
    body = parse(DecisionRequest, json.dumps(BODY).encode())
    assert [type(item).__name__ for item in body.input] == [
        "SystemMessage",
        "SystemMessage",
        "UserMessage",
        "AssistantMessage",
        "FunctionCall",
        "CallOutput",
        "CustomCall",
        "CallOutput",
        "AssistantMessage",
        "UserMessage",
    ]
    assert [choice.value for choice in body.questions[1].choices] == [True, "true", False]


PAIRS = {
    "DecisionCreateParams": schemas.DecisionRequest,
    "InputUnionMember1DecisionInputUserMessage": schemas.UserMessage,
    "InputUnionMember1DecisionInputDeveloperMessage": schemas.SystemMessage,
    "InputUnionMember1DecisionInputSystemMessage": schemas.SystemMessage,
    "InputDecisionInputAssistantMessageContentDecisionInputAssistantContentPartDecisionInputOutputText": (
        schemas.OutputText
    ),
    "InputDecisionInputAssistantMessageContentDecisionInputAssistantContentPartDecisionInputRefusal": (
        schemas.RefusalPart
    ),
    "InputUnionMember1DecisionInputAssistantMessage": schemas.AssistantMessage,
    "InputUnionMember1DecisionInputFunctionCall": schemas.FunctionCall,
    "InputUnionMember1DecisionInputFunctionCallOutput": schemas.CallOutput,
    "InputUnionMember1DecisionInputCustomToolCall": schemas.CustomCall,
    "InputUnionMember1DecisionInputCustomToolCallOutput": schemas.CallOutput,
    "QuestionQuestionParamPredicate": schemas.Predicate,
    "QuestionQuestionParamChoiceChoice": schemas.ChoiceOption,
    "QuestionQuestionParamChoice": schemas.Choice,
    "QuestionQuestionParamScoreLevel": schemas.Level,
    "QuestionQuestionParamScore": schemas.Score,
    "PromptCacheOptions": schemas.PromptCacheOptions,
}
"""The SDK's types of a request -> ours."""


def test_no_field_of_the_sdk_is_unknown() -> None:
    defined = {
        name
        for name, kind in vars(theirs).items()
        if inspect.isclass(kind) and kind.__module__ == theirs.__name__ and hasattr(kind, "__required_keys__")
    }
    assert defined == PAIRS.keys()
    for name, ours in PAIRS.items():
        assert getattr(theirs, name).__annotations__.keys() <= ours.model_fields.keys(), name
    assert DecisionInputTextParam.__annotations__.keys() == schemas.TextPart.model_fields.keys()
    assert DecisionQuestionInputText.__annotations__.keys() == schemas.QuestionText.model_fields.keys()
    assert DecisionInputJSON.__annotations__.keys() == schemas.JsonPart.model_fields.keys()


def test_images_are_refused_with_a_sentence() -> None:
    image: DecisionInputImageParam = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
    for changed in (
        {"input": [{"role": "user", "content": [image]}]},
        {"questions": [{"type": "predicate", "instructions": [image]}]},
        {"input": [*BODY["input"][:5], {"type": "function_call_output", "call_id": "c1", "output": [image]}]},
    ):
        with pytest.raises(BadRequest, match="the models here read text"):
            parse(DecisionRequest, BODY | changed)


def test_the_sdk_reads_the_answers() -> None:
    answer: Decision = {
        "model": "tiny",
        "answers": [
            {"type": "predicate", "name": "a", "probability": 0.5},
            {
                "type": "choice",
                "name": None,
                "choice": False,
                "confidence": 0.1,
                "probabilities": [{"value": False, "probability": 0.6}, {"value": "false", "probability": 0.4}],
            },
            {
                "type": "score",
                "name": None,
                "score": 0.5,
                "confidence": 0.0,
                "probabilities": [{"value": 0, "label": "low", "probability": 1.0}],
            },
            {"type": "refusal", "name": "d"},
        ],
        "usage": {
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 4},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 9,
        },
    }
    TypeAdapter(Decision).validate_python(answer)  # ours
    read = TheirDecision.model_validate(answer)
    assert read.model_extra == {}
    assert [given.type for given in read.answers] == ["predicate", "choice", "score", "refusal"]
    assert read.model_dump() == answer


@pytest.mark.parametrize(
    ("changed", "param", "said"),
    [
        ({"questions": []}, "questions", "must not be empty"),
        ({"input": []}, "input", "must not be empty"),
        ({"questions": [{"type": "predicate"}]}, "questions.0.instructions", "questions.0.instructions' is required"),
        ({"questions": [{"type": "rank", "instructions": "x"}]}, "questions.0", "predicate, choice, score; got 'rank'"),
        ({"questions": [{"instructions": "x"}]}, "questions.0", "got None"),
        ({"questions": [BODY["questions"][0] | {"names": "x"}]}, "questions.0.names", "did you mean 'name'"),
        ({"questions": [BODY["questions"][0]] * 401}, "questions", "at most 400"),
        (
            {"questions": [BODY["questions"][1] | {"choices": [{"value": 1}, {"value": 2}]}]},
            "questions.0.choices.0.value",
            "str or bool",
        ),
        (
            {"questions": [BODY["questions"][1] | {"choices": [{"value": "x"}] * 256}]},
            "questions.0.choices",
            "at most 255",
        ),
        ({"questions": ["x"]}, "questions.0", "must be an object with a type"),
        ({"input": [{"role": "boss", "content": "x"}]}, "input.0", "got 'boss'"),
        (
            {"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]},
            "input.0.content.0",
            "'output_text'",
        ),
        ({"prompt_cache_options": {"ttl": "1h"}}, "prompt_cache_options.ttl", "30m"),
        ({"temperature": 1}, "temperature", "unknown field 'temperature'"),
    ],
)
def test_a_wrong_field_is_named(changed: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(DecisionRequest, BODY | changed)
    assert said in str(refused.value)
    assert refused.value.param == param
