"""What a request says an answer must be, as a grammar in llguidance's form of Lark.

A `Rule` is a part of such a grammar, so that it can stand behind a model's thinking, or beside the calls of tools. It
is made without compiling anything: what the library cannot follow is refused where grammars are compiled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from octavo.constraint import MAX_GRAMMAR, Grammar, StructuredOutputs
from octavo.errors import BadRequest
from octavo.text.grammars.brief import TakesLong, is_brief
from octavo.text.grammars.cost import MAX_EXPRESSION

MAX_CHOICES = 4096
"""Texts to choose from."""
MAX_REGEX = MAX_EXPRESSION - len("/(?:)/")
"""Characters of a regular expression."""
MAX_GBNF = 2**15
"""Characters of a grammar in llama.cpp's form, and MAX_RULES its rules: they take the conversion, which is Python and
visits each rule for each, 0.2 s."""
MAX_RULES = 256
BRIEF_GBNF = 2**12
"""Characters that are converted `briefly`."""
MAX_DEPTH = 100
"""Levels of a schema: the library takes 128."""

KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
"""Fields of `StructuredOutputs` of which one is set."""

ANSWER = "answer"
"""Name of a client's own grammar, where it is a part of another."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A part of a grammar.

    Attributes:
        text: the right side of a rule.
        grammars: name -> Lark, of the grammars that it refers to as `@name`.
        terminals: further rules, in whole lines.
        is_json: it ends with JSON.
    """

    text: str
    grammars: tuple[tuple[str, str], ...] = ()
    terminals: str = ""
    is_json: bool = False


def lark(start: Rule) -> str:
    """A whole grammar that begins with a rule: Lark, or JSON with the grammars that it refers to."""
    if start.text == f"@{ANSWER}" and len(start.grammars) == 1:
        return start.grammars[0][1]
    source = f"%llguidance {{}}\nstart: {start.text}\n{start.terminals}"
    if not start.grammars:
        return source
    others = [{"name": name, "lark_grammar": text} for name, text in start.grammars]
    return json.dumps({"grammars": [{"lark_grammar": source}, *others]})


def grammar(wanted: StructuredOutputs) -> Grammar:
    """The grammar of a text that is nothing but what is wanted.

    Raises:
        BadRequest: as `rule`.
    """
    made = rule(wanted)
    return Grammar(source=lark(made), is_json=made.is_json, param=wanted.param)


def rule(wanted: StructuredOutputs) -> Rule:
    """What is wanted, as a rule. Takes up to 0.2 s for a grammar in llama.cpp's form, and a few ms for all others.

    Raises:
        BadRequest: nothing is wanted, or several things; or it is too large, or not of its type.
    """
    given = [kind for kind in KINDS if getattr(wanted, kind) not in (None, [])]
    if wanted.json_object is False:
        given.remove("json_object")
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise BadRequest(f"{wanted.param} must hold exactly one of {', '.join(KINDS)}; got {found}", wanted.param)
    value, param = getattr(wanted, given[0]), wanted.param
    if given[0] == "json":
        return json_rule(value, param, strict=wanted.strict)
    if given[0] == "json_object":
        return json_rule({"type": "object"}, param)
    if given[0] == "regex":
        return regex_rule(value, param)
    if given[0] == "choice":
        return choice_rule(value, param)
    if given[0] == "grammar":
        return grammar_rule(value, param)
    from octavo.text.grammars.structural import structural_rule  # which is made of the rules here

    return structural_rule(value, param)


def json_rule(schema: Any, param: str, *, strict: bool = False) -> Rule:
    """JSON that a schema allows.

    Args:
        schema: a JSON schema, or its text.
        strict: what the library does not implement is refused; otherwise it is ignored, as `format: "color"` is.

    Raises:
        BadRequest.
    """
    if isinstance(schema, str):
        schema = loaded(schema, param)
    if not isinstance(schema, dict | bool):
        raise BadRequest(f"{param} must be a JSON schema, an object", param)
    if schema is False:
        raise BadRequest(f"{param} is false, which no JSON keeps to", param)
    return Rule(f"%json {schema_text(schema, param, strict=strict)}", is_json=True)


_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def schema_text(
    schema: Mapping[str, Any] | Literal[True], param: str, *, strict: bool = False, spaced: bool = False
) -> str:
    """A JSON schema as text, with the library's options in it. Arguments and errors as `json_rule`.

    Args:
        spaced: a space after each comma and colon and no other white space, as Python's `json.dumps` writes.
    """
    check_size(schema, param)
    try:
        if schema is True:  # as an object: of `(%json true)` the library reads the parenthesis, too
            schema = {}
        own = {key: value for key, value in schema.items() if key != "x-guidance"}  # options are ours to set
        text = json.dumps(own, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise BadRequest(f"{param} must be JSON: {error!s:.200}", param) from None
    escapes = {} if _CONTROL.search(text) else {"json_allowed_escapes": _ESCAPES}
    options = {"lenient": not strict} | escapes | (_SPACED if spaced else {})
    # last: the library moves the last key to where it took its options out, which changes the properties' order
    return f'{text[:-1]}{", " if own else ""}"x-guidance": {json.dumps(options)}}}'


def regex_rule(pattern: Any, param: str) -> Rule:
    """A text that a regular expression matches as a whole.

    Raises:
        BadRequest.
    """
    if not isinstance(pattern, str) or not pattern or len(pattern) > MAX_REGEX:
        raise BadRequest(f"{param} must be a regular expression of 1 to {MAX_REGEX} characters", param)
    _check_unicode(pattern, param)
    return Rule(regex(f"(?:{pattern})"))


def regex(pattern: str) -> str:
    """A regular expression as Lark spells it."""
    return f"/{_SLASH.sub(_escaped, pattern)}/"


def choice_rule(choices: Any, param: str) -> Rule:
    """One of some texts.

    Raises:
        BadRequest.
    """
    few = isinstance(choices, Sequence) and not isinstance(choices, str) and 0 < len(choices) <= MAX_CHOICES
    if not few or not all(isinstance(choice, str) for choice in choices):
        raise BadRequest(f"{param} must be a list of 1 to {MAX_CHOICES} texts", param)
    if sum(map(len, choices)) > MAX_GRAMMAR:
        raise BadRequest(f"{param} must have at most {MAX_GRAMMAR} characters", param)
    texts = " | ".join(literal(choice, param) for choice in dict.fromkeys(choices))
    return Rule("CHOICE", terminals=f"CHOICE: {texts}\n")  # one terminal: of rules, few may wait for their end


def literal(text: str, param: str = "") -> str:
    """A text as Lark spells it.

    Raises:
        BadRequest: it has half of a surrogate pair.
    """
    _check_unicode(text, param)
    return json.dumps(text, ensure_ascii=False)


def grammar_rule(text: Any, param: str, name: str = ANSWER) -> Rule:
    """What a client's grammar says: Lark, or llama.cpp's GBNF.

    Raises:
        BadRequest.
    """
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_GRAMMAR:
        raise BadRequest(f"{param} must be a grammar of 1 to {MAX_GRAMMAR} characters", param)
    _check_unicode(text, param)
    if text.lstrip().startswith("{"):
        raise BadRequest(f"{param} must be in the form of Lark or GBNF, not JSON", param)
    return Rule(f"@{name}", ((name, text if _is_lark(text) else _from_gbnf(text, param)),))


def _is_lark(text: str) -> bool:
    return "::=" not in text or any(_START.match(line) for line in text.splitlines())


def _from_gbnf(text: str, param: str) -> str:
    """Lark of GBNF; the conversion recurses, and visits each rule for each."""
    if len(text) > MAX_GBNF or text.count("::=") > MAX_RULES:
        raise BadRequest(f"{param}: GBNF may have {MAX_GBNF} characters and {MAX_RULES} rules; send Lark", param)
    if len(text) > BRIEF_GBNF and is_brief():
        raise TakesLong
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except Exception as error:  # it raises bare ones, and others from its inside
        raise BadRequest(f"{param} is no GBNF that is understood here: {error!s:.200}", param) from None


def check_size(value: Any, param: str) -> None:
    """Refuse JSON that is too large or too deep; takes 100 ns a value, and stops where it is too large.

    Raises:
        BadRequest.
    """
    size, level = 0, [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for part in level:
            if isinstance(part, Mapping):
                size += sum(len(key) if isinstance(key, str) else 8 for key in part)
                below += part.values()
            elif isinstance(part, list | tuple):
                below += part
            elif isinstance(part, str):
                size += len(part)
        size += len(below)
        if size > MAX_GRAMMAR:
            raise BadRequest(f"{param} must have at most {MAX_GRAMMAR} characters", param)
        level = below
        if not level:
            return
    raise BadRequest(f"{param} is nested too deeply: at most {MAX_DEPTH} levels are taken", param)


def loaded(text: str, param: str) -> Any:
    """JSON in a field that holds it as a text.

    Raises:
        BadRequest.
    """
    if len(text) > MAX_GRAMMAR:
        raise BadRequest(f"{param} must have at most {MAX_GRAMMAR} characters", param)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{param} must be JSON: {error!s:.200}", param) from None


def _check_unicode(text: str, param: str) -> None:
    if not text.isascii() and _SURROGATE.search(text):
        raise BadRequest(f"{param} must be Unicode: it has half of a surrogate pair", param)


_ESCAPES = 'nrbtf\\"'
r"""What may follow a backslash in a string, where the schema spells no control character: not `u`. Beside a declared
property "a" the library takes `"\u0061"` for an additional one."""
_CONTROL = re.compile(r"\\u00[01]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_START = re.compile(r"\s*(%llguidance\b|\??start\b[^:\"'/]*:(?!:=))")
_SLASH = re.compile(r"\\.|/", re.DOTALL)


def _escaped(match: re.Match[str]) -> str:
    return r"\/" if match[0] == "/" else match[0]
