"""Whether a grammar compiles at all, found out once: tools that are not strict go without a schema that does not."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from octavo.constraint import Grammar
from octavo.errors import BadRequest
from octavo.text.grammars.brief import TakesLong, is_brief, look
from octavo.text.grammars.compiler import light_limits, limits
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
