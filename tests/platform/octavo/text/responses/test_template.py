"""A response template that is wrong, or holds what is not done here, is refused with a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.text.responses.families import NAMES, builtin
from octavo.text.responses.template import TemplateError, load_template

CONTENT: dict[str, Any] = {"content": {}}
CALLS = {"open": "<c>", "content": "json"}


def test_a_template_is_its_fields() -> None:
    template = load_template({"start_anchor": "<a>", "fields": {"tool_calls": CALLS, **CONTENT}})
    assert [(field.name, field.role, field.content) for field in template.fields] == [
        ("tool_calls", "calls", "json"),
        ("content", "content", "text"),
    ]
    assert {"<a>", "<c>"} <= set(template.texts)
    assert template.anchor is not None


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_template_has_calls_and_content(name: str) -> None:
    assert {"calls", "content"} <= {field.role for field in builtin(name).fields}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ([], "must be an object"), ({"fields": {}}, "1 to 16 fields"),
        ({"fields": CONTENT, "x": 1}, "'x' is not known"),
        ({"fields": CONTENT, "version": 2}, "version 2"), ({"fields": {"content": 1}}, "content must be an object"),
        ({"fields": {"content": {"opn": "x"}}}, "'opn' is not known"), ({"fields": {"citations": {}}}, "no field of"),
        ({"fields": {"content": {"content": "json"}}}, "not done here"),
        ({"fields": {"tool_calls": {"content": "json"}}}, "need"),
        ({"fields": {"tool_calls": {**CALLS, "content": "kv-lines"}}}, "not done here"),
        ({"fields": {"content": {"close": "a", "close_pattern": "b"}}}, "exclude"),
        ({"fields": {"content": {"close": ["a", ""]}}}, "none of them empty"),
        ({"fields": {"content": {"close_pattern": "("}}}, "not closed"),
        ({"fields": {"content": {"close_pattern": 1}}}, "a text"),
        ({"fields": {"content": {"content_args": []}}}, "content_args"),
        ({"fields": {"content": {}, "thinking": {}}}, "only one"),
        ({"fields": CONTENT, "start_anchor": []}, "start_anchor"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(spec: Any, why: str) -> None:
    with pytest.raises(TemplateError, match=why):
        load_template(spec)
