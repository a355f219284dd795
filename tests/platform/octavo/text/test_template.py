"""Templates come out of model files: whatever one does, it ends soon with a text or one sentence."""

from __future__ import annotations

import pytest

from octavo.errors import BadRequest
from octavo.text.template import QUICK_TEXT, NotQuick, compiled, fits, is_compiled
from octavo.text.template_process import render_apart

SIXTY = "{% set ns = namespace(s='ab', l=[1]) %}{% for i in range(60) %}"
TIMED = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(99999) if range(99999)|list|length == 0 %}{% endfor %}",
    "calls itself": "{% macro f(n) %}{% if n > 0 %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "spaces in spaces": "{% set s = 1 %}" + "{% set s = namespace(a=s, b=s) %}" * 50 + "{{ s }}",
    "lists in lists": SIXTY + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
}
SIZED = {
    "times": "{{ 'a' * 10**9 }}",
    "power": "{{ 2**(10**10) }}",
    "plus": SIXTY + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "tilde": SIXTY + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "block": SIXTY + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "json in json": SIXTY + "{% set ns.s = '\\\\' ~ ns.s|tojson %}{% endfor %}",
    "replace": SIXTY + "{% set ns.s = ns.s|replace('a', 'aa') %}{% endfor %}",
    "join": "{{ range(99999)|join('x' * 9999)|length }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "constant": "{{ 'a'|center(1000000000)|length }}",
    "by name": "{{ ['a']|map('center', 1000000000)|list|length }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "output": "{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
}
REFUSED = {
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "range": "{{ range(10**12)|list }}",
    "numbers": "{{ range(99999)|unique|list|length }}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "digits": "{{ " + "9" * 5000 + " }}",
    "long": "x" * 300_000,
    "include": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize(
    "source", [*TIMED.values(), *SIZED.values(), *REFUSED.values()], ids=[*TIMED, *SIZED, *REFUSED]
)
def test_no_template_stays_in_place_for_long(source):
    with pytest.raises((NotQuick, BadRequest)):
        compiled(source).render_quickly({})


@pytest.mark.parametrize("source", SIZED.values(), ids=SIZED)
def test_no_template_takes_all_memory(source):
    with pytest.raises(BadRequest, match=r"the model's chat template (writes more than|was stopped|cannot render)"):
        render_apart(source, {})
    assert render_apart("{{ a }}", {"a": "next"}) == "next"


def test_what_is_no_template_is_found_once():
    source = "{% for %}"
    assert not is_compiled(source)
    for _ in range(2):
        with pytest.raises(BadRequest, match="refuses these messages"):
            compiled(source)
        assert is_compiled(source)


def test_what_fits():
    assert fits({"a": ["b" * 10, 1, None]}, 30)
    assert not fits({"a": "b" * 100}, 99)
    assert not fits([None] * 100, 399)
    nested: list = []
    for _ in range(60):
        nested = [nested, nested]
    assert not fits(nested, QUICK_TEXT)
