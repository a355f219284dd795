"""Values that answer to both shapes in which templates expect a message's fields."""

from __future__ import annotations

import pickle

import jinja2
import pytest

from octavo.text.template_values import Arguments, NoContent, OnePart, TemplateMessage

ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined)


def rendered(source: str, **values: object) -> str:
    return ENVIRONMENT.from_string(source).render(**values)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ m.content is defined }}", "False"),
        ("{{ 'x' + m['content'] + 'y' }}", "xy"),
        ("{{ m['content'].strip() }}", ""),
        ("{% for part in m['content'] %}part{% endfor %}", ""),
        ("{% if m['content'] %}some{% else %}none{% endif %}", "none"),
    ],
)
def test_a_content_that_is_not_there_is_undefined_and_an_empty_text(source, text):
    assert rendered(source, m=TemplateMessage(role="assistant")) == text


def test_other_fields_are_missing_as_in_any_mapping():
    with pytest.raises(KeyError):
        TemplateMessage(role="user")["tool_calls"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ c }}", "Hello"),
        ("{{ c + '!' }}{{ c[0] }}{{ c[:2] }}", "Hello!HHe"),
        ("{% for part in c %}{{ part.type }}:{{ part.text }}{% endfor %}", "text:Hello"),
        ("{{ c is string }}", "True"),
        ("{{ c | length }}", "5"),
    ],
)
def test_a_plain_content_is_one_part_to_a_loop_and_a_text_to_everything_else(source, text):
    assert rendered(source, c=OnePart("Hello")) == text
    assert isinstance(OnePart("")[0], NoContent)


def test_arguments_are_an_object_and_the_text_that_was_sent():
    sent = '{"b": 1,  "a": "é"}'
    arguments = pickle.loads(pickle.dumps(Arguments({"b": 1, "a": "é"}, sent)))
    assert rendered("{{ a.b }}|{{ a }}|{{ 'x' + a }}|{{ a + 'y' }}", a=arguments) == f"1|{sent}|x{sent}|{sent}y"
    assert isinstance(arguments, dict)
