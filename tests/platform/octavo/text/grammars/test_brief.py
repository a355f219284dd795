from __future__ import annotations

import pytest

from octavo.text.grammars.brief import LOOKS, TakesLong, briefly, is_brief
from octavo.text.grammars.sound import is_sound
from octavo.text.grammars.sources import grammar_rule

GBNF = "root ::= " + " | ".join(f'"word {i}"' for i in range(500))


def test_brief_work_is_what_is_said_to_be_brief():
    assert briefly(is_brief)
    assert not is_brief()
    with pytest.raises(ZeroDivisionError):
        briefly(divmod, 1, 0)
    assert not is_brief()


def test_many_new_schemas_take_long_and_what_was_found_is_kept():
    sources = [f'start: "schema {i}"' for i in range(LOOKS + 1)]
    with pytest.raises(TakesLong):
        briefly(lambda: [is_sound(source) for source in sources])
    assert briefly(lambda: [is_sound(source) for source in sources]) == [True] * len(sources)


@pytest.mark.parametrize(("source", "sound"), [("start: nowhere", False), ('start: "' + "x" * 2**15 + '"', True)])
def test_a_schema_that_may_take_long_is_not_looked_at_briefly(source, sound):
    with pytest.raises(TakesLong):
        briefly(is_sound, source)
    assert is_sound(source) is sound
    assert briefly(is_sound, source) is sound


def test_long_gbnf_takes_long():
    with pytest.raises(TakesLong):
        briefly(grammar_rule, GBNF, "grammar")
    assert grammar_rule(GBNF, "grammar").grammars
    assert briefly(grammar_rule, GBNF[: GBNF.index(" |")], "grammar").grammars
