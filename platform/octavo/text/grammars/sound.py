"""Whether a grammar compiles at all, found out once: tools that are not strict go without a schema that does not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from octavo.constraint import Grammar
from octavo.errors import BadRequest
from octavo.text.grammars.blame import blamed
from octavo.text.grammars.brief import TakesLong, is_brief, look
from octavo.text.grammars.compiler import check_grammar, light_limits, limits
from octavo.text.grammars.cost import check_cost
from octavo.text.grammars.lanes import deep_thread

MAX_KNOWN = 4096
"""Grammars that are remembered, by 16 bytes each."""

_known: OrderedDict[bytes, bool] = OrderedDict()


def is_sound(source: str) -> bool:
    """Whether llguidance takes a grammar; 1 to 8 ms, which do not hold the GIL, and less for one that is known.

    Raises:
        TakesLong: it may take up to 0.4 s, or there have been many, and this is to be done `briefly`.
    """
    key = blake2b(source.encode(), digest_size=16).digest()
    found = _known.get(key)
    if found is None:
        look()
        found = _known[key] = _compiles(source)
        while len(_known) > MAX_KNOWN:
            _known.popitem(last=False)
    return found


def check_sound(schema: Any, param: str, grammar_of: Callable[[Any], str]) -> None:
    """Refuse a schema of which no grammar can be made that llguidance takes.

    Args:
        param: the request's field that holds it.
        grammar_of: makes the grammar, or raises a BadRequest whose sentence begins with the field.

    Raises:
        BadRequest: naming what is wrong inside the schema.
        TakesLong: as `is_sound`, or to find the place is to be done `briefly`.
    """
    try:
        if is_sound(grammar_of(schema)):
            return
    except BadRequest:
        pass
    if is_brief():
        raise TakesLong

    found: list[BadRequest] = []

    def check(part: Any) -> None:
        check_grammar(Grammar(source=grammar_of(part), param=param), limits())

    def look_for_it() -> None:
        try:
            check(schema)
        except BadRequest as error:
            found.append(blamed(error, schema, check))

    deep_thread(look_for_it).join()
    raise found[0]


def _compiles(source: str) -> bool:
    from llguidance import LLMatcher

    brief = is_brief()
    try:
        light = check_cost(Grammar(source=source)).is_light
    except BadRequest:
        return False
    if brief and not light:
        raise TakesLong
    within = light_limits() if brief else limits()
    sound: list[bool] = []

    def validate() -> None:
        wrong, _ = LLMatcher.validate_grammar_with_warnings(source, limits=within)
        sound.append(not wrong)

    deep_thread(validate).join()
    if brief and not any(sound):  # with more fuel it may be
        raise TakesLong
    return any(sound)
