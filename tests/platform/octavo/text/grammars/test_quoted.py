from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from octavo.errors import BadRequest
from octavo.text.grammars.quoted import may_hold, quoted
from octavo.text.grammars.sources import Rule, lark

PATCH = r"""
start: begin hunk+ end  // a patch
begin: "*** Begin Patch" LF
end: "*** End Patch" LF?
hunk: "*** Add File: " filename LF line+
filename: /(.+)/
line: "+" /(.*)/ LF
%import common.LF
"""

EXEC = r"""
start: pragma_source | plain_source
pragma_source: PRAGMA_LINE NEWLINE SOURCE
plain_source: SOURCE
PRAGMA_LINE: /[ \t]*\/\/ @exec:[^\r\n]*/
NEWLINE: /\r?\n/
SOURCE: /[\s\S]+/
"""

TEXTS = [
    (PATCH, ['*** Begin Patch\n*** Add File: a\\b.py\n+print("é")\n+\n*** End Patch\n'], ["*** Begin Patch\n"]),
    (r'start: /[^"\n]+\t?/', ["a\\\t", "é'"], ['a"', "\n"]),
    (r'start: "a\"b" /(?s:.){2}/', ['a"b\n"', 'a"bé\\'], ['a"b']),
    (EXEC, ["// @exec: a\r\nb", "x\n"], [""]),
    ("start: /\\d{2,3}|x\\/y/", ["12", "123", "x/y"], ["1", "xy"]),
]


@pytest.mark.parametrize(("grammar", "good", "bad"), TEXTS)
def test_texts_are_those_of_the_grammar_in_a_string_of_json(
    accepts: Callable[[str, str], bool], grammar: str, good: list[str], bad: list[str]
) -> None:
    assert all(accepts(grammar, text) for text in good)
    source = lark(Rule('"{\\"input\\": \\"" @own "\\"}"', (("own", quoted(grammar, "tools")),)))
    for text in good:
        assert accepts(source, json.dumps({"input": text}, ensure_ascii=False)), text
    assert not any(accepts(source, json.dumps({"input": text}, ensure_ascii=False)) for text in bad)


@pytest.mark.parametrize(
    "grammar",
    ["start: <|token|>", "start: %json {}", "start: @other", r"start: /a\b/", "start: /^a/", "%import common.FLOAT",
     "start: /(?P<a>b)/", r"start: /\p{L}/", r'start: "\q"'],
)  # fmt: skip
def test_what_cannot_be_rewritten_is_refused(grammar: str) -> None:
    with pytest.raises(BadRequest, match="cannot stand"):
        quoted(grammar, "tools.0.custom.format")


@pytest.mark.parametrize(
    ("grammar", "held"),
    [(PATCH, False), (EXEC, True), (r"start: /(.|\n)*/", True), (r'start: "\n<" /a+\n?/', False),
     (r"start: /(?s:.*)/", True), (r"start: /.*/s", True)],
)  # fmt: skip
def test_a_terminal_may_hold_what_ends_a_text(grammar: str, held: bool) -> None:
    assert may_hold(grammar, "\n</parameter>") is held
