"""What llguidance's limits forget: a compile takes the square of an expression's length, and of the terminals' number.

60,000 characters of a regular expression took minutes, of which a thread cannot be relieved.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from octavo.constraint import Grammar
from octavo.errors import BadRequest

MAX_EXPRESSION = 4096
"""Characters of a regular expression: 4,000 take 60 ms."""

MAX_TERMINALS = 256
"""Terminals of a Lark grammar: 200 that double in length each take two seconds until llguidance refuses them."""

MAX_DIVISORS = 2**15
"""Of a schema's `multipleOf`, the digits as an integer: the sum of all, or where schemas are merged their least common
multiple. A number takes a state per remainder, and 20 us a state: 100 of 10,000 each took 19 s."""

_EXPRESSION = re.compile(r"/(?:[^/\\\n]|\\.)*/")
_TERMINAL = re.compile(r"^[ \t]*_?[A-Z][A-Z0-9_]*[ \t]*(?:\[[^\]\n]*\])?[ \t]*:", re.MULTILINE)
_INLINE = re.compile(r"%json\s*(?=[{\[tf])")
_PATTERNS = ("pattern", "rx", "regex")


def check_cost(grammar: Grammar) -> None:
    """Raise BadRequest for what would keep a compile's thread for long."""
    longest = terminals = divisors = 0
    for lark, schema in _parts(grammar.source):
        longest = max(longest, *(len(found[0]) for found in _EXPRESSION.finditer(lark)), *_patterns(schema), 0)
        terminals += len(_TERMINAL.findall(lark))
        divisors += _states(schema)
    for count, most, what in (
        (longest, MAX_EXPRESSION, "a regular expression of {} characters"),
        (terminals, MAX_TERMINALS, "{} terminals"),
        (divisors, MAX_DIVISORS, "values of multipleOf that take {} states"),
    ):
        if count > most:
            raise BadRequest(f"{grammar.param} has {what.format(count)}; at most {most} are taken", grammar.param)


def _parts(source: str) -> Iterator[tuple[str, Any]]:
    """Texts in Lark and JSON values, of which a source is made; what is malformed is left to llguidance."""
    if not source.lstrip().startswith("{"):
        yield from _larks(source)
        return
    try:
        given = json.loads(source)
    except (ValueError, RecursionError):
        return
    grammars = given.get("grammars") if isinstance(given, dict) else None
    for each in grammars if isinstance(grammars, list) else ():
        if isinstance(each, dict):
            yield "", each.get("json_schema")
            if isinstance(lark := each.get("lark_grammar"), str):
                yield from _larks(lark)


def _larks(text: str) -> Iterator[tuple[str, Any]]:
    """Lark without the schemas in it, and these."""
    place, decoder = 0, json.JSONDecoder()
    while (found := _INLINE.search(text, place)) is not None:
        yield text[place : found.start()], None
        place = found.end()
        try:
            schema, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            continue
        yield "", schema
    yield text[place:], None


def _patterns(schema: Any) -> Iterator[int]:
    """Lengths of the regular expressions of a schema."""
    for value in _objects(schema):
        yield from (len(text) for key in _PATTERNS if isinstance(text := value.get(key), str))
        if isinstance(named := value.get("patternProperties"), dict):
            yield from map(len, named)


def _states(schema: Any) -> int:
    """States that the divisors of a schema's numbers take."""
    divisors, merges = [], False
    for value in _objects(schema):
        merges = merges or "allOf" in value or "$ref" in value
        divisor = value.get("multipleOf")
        if isinstance(divisor, int | float) and 0 < divisor < math.inf:
            digits = "".join(map(str, Decimal(repr(divisor)).as_tuple().digits))
            divisors.append(int(digits.rstrip("0")))
    found = sum(divisors)
    if merges and found <= MAX_DIVISORS:
        found = max(found, math.lcm(*divisors))
    return min(found, 10**9)


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    """All objects of a JSON value."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            yield value
