"""Whether a grammar compiles at all, found out once: tools that are not strict go without a schema that does not."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from octavo.constraint import Grammar
from octavo.errors import BadRequest
from octavo.text.grammars.compiler import limits
from octavo.text.grammars.cost import check_cost
from octavo.text.grammars.lanes import deep_thread

MAX_KNOWN = 4096
"""Grammars that are remembered, by 16 bytes each."""

_known: OrderedDict[bytes, bool] = OrderedDict()


def is_sound(source: str) -> bool:
    """Whether llguidance takes a grammar; 1 to 8 ms, which do not hold the GIL, and less for one that is known."""
    key = blake2b(source.encode(), digest_size=16).digest()
    found = _known.get(key)
    if found is None:
        found = _known[key] = _compiles(source)
        while len(_known) > MAX_KNOWN:
            _known.popitem(last=False)
    return found


def _compiles(source: str) -> bool:
    from llguidance import LLMatcher

    try:
        check_cost(Grammar(source=source))
    except BadRequest:
        return False
    sound: list[bool] = []

    def look() -> None:
        wrong, _ = LLMatcher.validate_grammar_with_warnings(source, limits=limits())
        sound.append(not wrong)

    deep_thread(look).join()
    return any(sound)
