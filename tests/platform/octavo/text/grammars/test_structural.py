from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo.text.grammars.sources import lark
from octavo.text.grammars.structural import structural_rule

Accepts = Callable[[str, str], bool]

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
CALL = {"begin": "<f=a>", "content": {"type": "json_schema", "json_schema": NUMBER}, "end": "</f>"}
WORD = {"begin": "<f=b>", "content": {"type": "regex", "pattern": "[a-z]+"}, "end": "</f>"}
NOTE = {"begin": "<n>", "content": {"type": "any_text"}, "end": "</n>"}


def _format(**form: Any) -> dict[str, Any]:
    return {"type": "structural_tag", "format": form}


TAKEN: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {"structures": [{"begin": "<f=a>", "schema": NUMBER, "end": "</f>"}], "triggers": ["<f="]},
        ["", "text", 'so <f=a>{"n": 1}</f> and <f=a>{"n":2}</f>.', "a < b"],
        ["<f=b>", '<f=a>{"n": "x"}</f>', '<f=a>{"n": 1}'],
    ),
    (
        _format(type="triggered_tags", triggers=["<f=", "<n>"], tags=[CALL, WORD, NOTE], at_least_one=True),
        ['x<f=a>{"n": 1}</f>y', "<f=b>q</f>", "<n>all < of\n</n>"],
        ["text", "<f=b>1</f>"],
    ),
    (
        _format(type="triggered_tags", triggers=["<f="], tags=[CALL], stop_after_first=True),
        ["text", 'x<f=a>{"n": 1}</f>'],
        ['<f=a>{"n": 1}</f>x'],
    ),
    (
        _format(type="tags_with_separator", tags=[WORD, NOTE], separator=","),
        ["", "<f=b>q</f>", "<f=b>q</f>,<n>x</n>"],
        ["<f=b>q</f><n>x</n>", "x"],
    ),
    (
        _format(type="sequence", elements=[
            {"type": "const_string", "value": "a"},
            {"type": "or", "elements": [{"type": "regex", "pattern": "b+"}, {"type": "tag", **WORD}]},
            {"type": "grammar", "grammar": 'root ::= "!"'},
            {"type": "any_text"},
        ]),
        ["abb!", "a<f=b>q</f>! and so on"],
        ["a!", "abb"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("value", "good", "bad"), TAKEN, ids=lambda value: str(value)[:60])
def test_tags_hold_what_their_schema_allows(
    accepts: Accepts, value: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    source = lark(structural_rule(value, "structural_tag"))
    assert [text for text in good if not accepts(source, text)] == []
    assert [text for text in bad if accepts(source, text)] == []


REFUSED: list[tuple[Any, str]] = [
    ("{", ""),
    ([], ""),
    ({"structures": []}, ""),
    ({"structures": [3], "triggers": ["a"]}, ".structures.0"),
    ({"structures": [{"begin": "b", "schema": {}, "end": ""}], "triggers": ["a"]}, ".structures.0.begin"),
    (
        {"structures": [{"begin": "a", "schema": {"items": {"type": "a"}}, "end": ""}], "triggers": ["a"]},
        ".structures.0.schema.items.type",
    ),
    ({"structures": [{"begin": "a", "end": ""}], "triggers": ["a"]}, ".structures.0.schema"),
    (_format(type="qwen_xml_parameter", json_schema={}), ".format"),
    (_format(type="sequence", elements=[{"type": "any_text"}, {"type": "any_text"}]), ".format.elements.0"),
    (_format(type="any_text", excludes=["a"]), ".format.excludes"),
    (_format(type="const_string"), ".format.value"),
    (_format(type="tag", begin="<a>", content={"type": "any_text"}), ".format.end"),
]


@pytest.mark.parametrize(("value", "where"), REFUSED, ids=str)
def test_what_is_not_done_is_refused_by_its_place(value: Any, where: str) -> None:
    with pytest.raises(BadRequest) as caught:
        structural_rule(value, "tag")
    assert caught.value.param == f"tag{where}"
