from __future__ import annotations

from typing import Any

import pytest

from octavo_serve.api.custom_tools import as_function, input_of, lark_of, parameters, wrong_format

REGEX = {"syntax": "regex", "definition": "[a-z]+"}
LARK = {"syntax": "lark", "definition": "start: A"}
OF_CHATS = {"type": "grammar", "grammar": REGEX}
OF_RESPONSES = {"type": "grammar", **REGEX}

FORMATS: list[tuple[Any, bool]] = [
    (None, True), ({"type": "text"}, True), (OF_CHATS, True), (OF_RESPONSES, True), ({"type": "grammar", **LARK}, True),
    ({}, False), ("text", False), ({"type": "grammar"}, False), ({"type": "grammar", "grammar": 3}, False),
    ({"type": "grammar", "grammar": {"syntax": "gbnf", "definition": "a"}}, False),
]  # fmt: skip


@pytest.mark.parametrize(("form", "right"), FORMATS, ids=str)
def test_a_format_is_of_either_api(form: Any, right: bool) -> None:
    assert (wrong_format(form) is None) == right


@pytest.mark.parametrize("form", [OF_CHATS, OF_RESPONSES])
def test_an_expression_binds_the_input_and_is_told_to_the_model(form: dict[str, Any]) -> None:
    schema = parameters(form)
    assert schema["properties"]["input"] == {"type": "string", "pattern": "^(?:[a-z]+)$"}
    assert "[a-z]+" in as_function("run", "Runs it.", form)["function"]["description"]
    assert parameters(None)["properties"]["input"] == {"type": "string"}
    assert as_function("run", None, None)["function"]["description"] == ""


def test_lark_is_no_schema() -> None:
    form = {"type": "grammar", "grammar": LARK}
    assert (lark_of(form), lark_of(OF_CHATS), lark_of(None)) == ("start: A", "", "")
    assert parameters(form)["properties"]["input"] == {"type": "string"}


def test_the_input_is_a_text_whatever_the_model_wrote() -> None:
    assert input_of('{"input": "a\\nb"}') == "a\nb"
    for odd in ('{"input": 3}', "[]", "{", '{"other": 1}'):
        assert input_of(odd) == odd
