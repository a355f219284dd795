"""What llguidance's limits forget: a compile takes the square of an expression's length, and of the terminals' number.

60,000 characters of a regular expression took minutes, of which a thread cannot be relieved.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

MAX_LIGHT = 2**15
"""Characters of a light grammar: an object of 370 properties, 11 ms. 100,000 take 20 ms whatever they say."""

_LIGHT_EXPRESSION, _LIGHT_TERMINALS, _LIGHT_DIVISORS, _LIGHT_PATTERNS = 512, 32, 1_000, 8
"""Of a light grammar, what is counted here. A text that must match 13 patterns at once takes 48 ms until it is
refused, whatever the fuel."""

_EXPRESSION = re.compile(r"/(?:[^/\\\n]|\\.)*/")
_TERMINAL = re.compile(r"^[ \t]*_?[A-Z][A-Z0-9_]*[ \t]*(?:\[[^\]\n]*\])?[ \t]*:", re.MULTILINE)
_INLINE = re.compile(r"%json\s*(?=[{\[tf])")
_PATTERNS = ("pattern", "rx", "regex")


@dataclass(frozen=True, slots=True)
class Cost:
    """What of a grammar makes its compile long.

    Attributes:
        length: characters of it.
        expression: characters of its longest regular expression.
        terminals: of Lark.
        divisors: states of its `multipleOf`.
        patterns: expressions of a schema that merges others, where a text may have to match all of them.
    """

    length: int
    expression: int
    terminals: int
    divisors: int
    patterns: int

    @property
    def is_light(self) -> bool:
        """Whether with little fuel a compile surely ends within some milliseconds."""
        return (
            self.length <= MAX_LIGHT
            and self.expression <= _LIGHT_EXPRESSION
            and self.terminals <= _LIGHT_TERMINALS
            and self.divisors <= _LIGHT_DIVISORS
            and self.patterns <= _LIGHT_PATTERNS
        )


def check_cost(grammar: Grammar) -> Cost:
    """What a grammar costs.

    Raises:
        BadRequest: it would keep a compile's thread for long.
    """
    cost = _cost(grammar.source)
    for count, most, what in (
        (cost.expression, MAX_EXPRESSION, "a regular expression of {} characters"),
        (cost.terminals, MAX_TERMINALS, "{} terminals"),
        (cost.divisors, MAX_DIVISORS, "values of multipleOf that take {} states"),
    ):
        if count > most:
            raise BadRequest(f"{grammar.param} has {what.format(count)}; at most {most} are taken", grammar.param)
    return cost


def schemas(source: str) -> Iterator[Any]:
    """The schemas in a grammar."""
    return (schema for _, schema in _parts(source) if schema is not None)


def _cost(source: str) -> Cost:
    longest = terminals = divisors = merged = 0
    for lark, schema in _parts(source):
        objects = list(_objects(schema))
        patterns = list(_patterns(objects))
        longest = max(longest, *(len(found[0]) for found in _EXPRESSION.finditer(lark)), *patterns, 0)
        terminals += len(_TERMINAL.findall(lark))
        divisors += _states(objects)
        merged += len(patterns) if patterns and _merges(objects) else 0
    return Cost(len(source), longest, terminals, divisors, merged)


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


def _patterns(objects: Sequence[dict[str, Any]]) -> Iterator[int]:
    """Lengths of the regular expressions of a schema with these objects."""
    for value in objects:
        yield from (len(text) for key in _PATTERNS if isinstance(text := value.get(key), str))
        if isinstance(named := value.get("patternProperties"), dict):
            yield from map(len, named)


def _states(objects: Sequence[dict[str, Any]]) -> int:
    """States that the divisors of a schema's numbers take."""
    divisors = []
    for value in objects:
        divisor = value.get("multipleOf")
        if isinstance(divisor, int | float) and 0 < divisor < math.inf:
            digits = "".join(map(str, Decimal(repr(divisor)).as_tuple().digits))
            divisors.append(int(digits.rstrip("0")))
    found = sum(divisors)
    if len(divisors) > 1 and found <= MAX_DIVISORS and _merges(objects):
        found = max(found, math.lcm(*divisors))
    return min(found, 10**9)


def _merges(objects: Sequence[dict[str, Any]]) -> bool:
    """Whether a value of a schema may have to keep to several of its parts at once."""
    return any("allOf" in value or "$ref" in value for value in objects)


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
