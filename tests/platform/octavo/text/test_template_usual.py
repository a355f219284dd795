"""What a template is made of: usual parts, which may run in place, and whether it reads contents part by part."""

from __future__ import annotations

import pytest
from jinja2 import Environment

from octavo.text.template_usual import MAX_NODES, is_usual, looks_into_parts

ENVIRONMENT = Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"])

USUAL = [
    "{% for m in messages %}{{ m['role'] + ': ' + m.content | trim }}{% endfor %}",
    "{% set ns = namespace(a=true) %}{% for m in messages %}{% if ns.a %}{{ m.content }}{% endif %}{% endfor %}",
    "{% macro show(m) %}{{ m | tojson }}{% endmacro %}{% for m in messages %}{{ show(m) }}{% endfor %}",
    "{{ raise_exception('no') }}{{ strftime_now('%d %B') }}{{ 'a'.strip().split('b')[-1] }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('\n') }}",
]
UNUSUAL = {
    "power": "{{ 2 ** 10 }}",
    "include": "{% include 'a' %}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(m) }}{% endfor %}",
    "unknown filter": "{{ 'a' | center(9) }}",
    "filter by name": "{{ ['a'] | map('center', 9) | list }}",
    "unknown method": "{{ 'a'.format(1) }}",
    "unknown function": "{{ lipsum() }}",
    "any arguments": "{% macro f(a) %}{% endmacro %}{{ f(*messages) }}",
    "widths": "{{ strftime_now('%1000000d') }}",
    "format of a variable": "{{ strftime_now(messages) }}",
    "namespace in a loop": "{% for m in messages %}{% set s = namespace(a=s, b=s) %}{% endfor %}",
    "many namespaces": "{% set s = namespace(a=s, b=s) %}" * 20,
    "long concatenation": "{{ " + " ~ ".join(["a"] * 40) + " }}",
    "long": "{{ a }}" * MAX_NODES,
}


@pytest.mark.parametrize("source", USUAL)
def test_usual_parts(source):
    assert is_usual(ENVIRONMENT.parse(source))


@pytest.mark.parametrize("source", UNUSUAL.values(), ids=UNUSUAL)
def test_a_part_that_makes_much_of_little_is_not_usual(source):
    assert not is_usual(ENVIRONMENT.parse(source))


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("{% for p in message.content %}{{ p.text }}{% endfor %}", True),
        ("{% for p in message['content'] | list %}{{ p.text }}{% endfor %}", True),
        ("{% set c = message.content or [] %}{% for p in c %}{{ p.text }}{% endfor %}", True),
        ("{% macro show(c) %}{% for p in c %}{{ p }}{% endfor %}{% endmacro %}{{ show(message.content) }}", True),
        ("{{ message.content | map(attribute='text') | join }}", True),
        ("{{ message.content[0].text }}", True),
        ("{{ message.content[0]['type'] }}", True),
        ("{{ message.content | trim }}{{ message.content[0] }}", False),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{% for t in tools %}{{ t[0].text }}{% endfor %}", False),
    ],
)
def test_how_contents_are_read(source, parts):
    assert looks_into_parts(ENVIRONMENT.parse(source)) is parts
