"""A grammar in Lark of the texts of another as they stand in a string of JSON.

Literals are escaped, and in expressions each character, class and dot becomes what JSON writes for it. Where an
expression is a part of a rule, its characters become terminals of their own: a lexer that has begun an escape in one
terminal does not go back to begin another one there. What cannot be rewritten so (tokens, inline schemas, assertions,
imports beyond the usual ones) is refused.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right

from octavo.errors import BadRequest

_PARTS = re.compile(
    r"""(?P<comment>//[^\n]*|\#[^\n]*)|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<regex>/(?:[^/\\\n]|\\.)+/[is]?)"""
    r"""|%import\s+common\.(?P<common>\w+)|(?P<other>[^"/\#%@<]+)|(?P<kept>%ignore\b|%llguidance\s*\{\s*\})|(?P<bad>.)""",
    re.DOTALL,
)
_COMMON = {
    "LF": r"\n", "NEWLINE": r"(?:\r?\n)+", "WS": r"[ \t\r\n]+", "WS_INLINE": r"[ \t]+", "DIGIT": "[0-9]",
    "INT": "[0-9]+", "LETTER": "[A-Za-z]", "WORD": "[A-Za-z]+", "CNAME": "[A-Za-z_][A-Za-z0-9_]*",
}  # fmt: skip
"""The imports that are known, as expressions."""
_ATOM = re.compile(r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*\]|\(\?[a-z]*:|\(\?|\{\d*,?\d*\}|.", re.DOTALL)
_CLASSES = (r"\d", r"\w", r"\s", r"\D", r"\W", r"\S")
_NAMES = re.compile(r"^[ \t]*[?!]?(\w+)[^:\n\"/]*:", re.MULTILINE)
_ESCAPED = {"\n": "n", "\t": "t", "\r": "r", "\b": "b", "\f": "f", '"': '"', "\\": "\\"}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}


def quoted(grammar: str, param: str) -> str:
    """The rewritten grammar.

    Raises:
        BadRequest: something in it cannot be rewritten.
    """
    found: list[str] = []
    places = [(match.start(1), match[1]) for match in _NAMES.finditer(grammar)]
    for part in _PARTS.finditer(grammar):
        kind, text = part.lastgroup, part[0]
        if kind == "string":
            found.append(_literal(text, param))
        elif kind == "regex":
            end = text.rindex("/")
            name = places[at - 1][1] if (at := bisect_right(places, (part.start(), ""))) else "START"
            pattern, dot_all = text[1:end], "s" in text[end:]
            if name.upper() == name or "i" in text[end:]:
                found.append(f"/{_expression(pattern, param, dot_all=dot_all)}/{text[end + 1 :].strip('s')}")
            else:
                found.append(f"({_expression(pattern, param, dot_all=dot_all, in_rule=True)})")
        elif kind == "common":
            if part["common"] not in _COMMON:
                raise _bad(text, param)
            found.append(f"{part['common']}: /{_expression(_COMMON[part['common']], param)}/")
        elif kind == "bad":
            raise _bad(grammar[part.start() : part.start() + 40], param)
        elif kind != "comment":
            found.append(text)
    return "".join(found)


def may_hold(grammar: str, ending: str) -> bool:
    """Whether a terminal of a grammar may match a text with the first two characters of an ending in it.

    A lexer takes as much as it can: such a terminal goes on over the ending, and never stops. The answer may be a yes
    where it is a no.
    """
    for part in _PARTS.finditer(grammar):
        text = part[0]
        if part.lastgroup == "regex" and all(_matches(text, char) for char in ending[:2]):
            return True
    return False


def _matches(text: str, char: str) -> bool:
    """Whether an atom of an expression, which stands between slashes, matches a character."""
    end = text.rindex("/")
    flags = re.DOTALL if "s" in text[end:] or "(?s:" in text else 0
    try:
        return any(re.fullmatch(atom, char, flags) for atom in _ATOM.findall(text[1:end]) if _is_class(atom))
    except re.error:
        return True


def _is_class(atom: str) -> bool:
    return atom[0] in "[\\" or (len(atom) == 1 and atom not in "()|*+?^${}")


def _literal(text: str, param: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        raise _bad(text, param) from None
    return json.dumps(json.dumps(value, ensure_ascii=False)[1:-1], ensure_ascii=False)


def _expression(pattern: str, param: str, *, dot_all: bool = False, in_rule: bool = False) -> str:
    """An expression, rewritten; the right side of a rule if it is a part of one."""
    found: list[str] = []
    dots = [dot_all]
    for atom in _ATOM.findall(pattern):
        if atom.startswith("("):
            if atom not in ("(", "(?:", "(?s:"):
                raise _bad(atom, param)
            dots.append(dots[-1] or atom == "(?s:")
            found.append("(" if in_rule else "(?:")
        elif atom == ")":
            dots = dots[:-1] or [dot_all]
            found.append(")")
        elif atom in "|*+?" or (atom[0] == "{" and len(atom) > 1):
            found.append(atom)
        elif atom == "." or atom[0] == "[" or atom in _CLASSES:
            source = {".": r"[\s\S]" if dots[-1] else r"[^\n]"}.get(atom, atom)
            found.append(_class(source, param, " | ", "/") if in_rule else _class(source, param))
        elif atom in "^$" or (atom[0] == "\\" and atom[1].isalnum() and atom[1] not in _CONTROLS):
            raise _bad(atom, param)
        else:
            char = _CONTROLS.get(atom[1], atom[1]) if atom[0] == "\\" else atom
            found.append(_literal(json.dumps(char), param) if in_rule else _char(char))
    return " ".join(found) if in_rule else "".join(found)


def _char(char: str) -> str:
    """One character as JSON writes it, as an expression."""
    return "(?:" + "".join(_escape(each) for each in json.dumps(char, ensure_ascii=False)[1:-1]) + ")"


def _class(source: str, param: str, either: str = "|", slash: str = "") -> str:
    """A class: its characters as they are, or escaped."""
    try:
        inside = re.compile(source).fullmatch
    except re.error:
        raise _bad(source, param) from None
    plain = "".join(_escape(chr(code)) for code in range(32, 127) if chr(code) not in _ESCAPED and inside(chr(code)))
    wide = r"\x{80}-\x{10FFFF}" if inside("\u00e9") and inside("\u4e2d") else ""
    escaped = "".join(_escape(name) for char, name in _ESCAPED.items() if inside(char))
    choices = [f"[{plain}{wide}]" if plain or wide else "", rf"\\[{escaped}]" if escaped else ""]
    if not any(choices):
        raise _bad(source, param)
    text = either.join(f"{slash}{choice}{slash}" for choice in choices if choice)
    return f"({text})" if slash else f"(?:{text})"


def _escape(char: str) -> str:
    return f"\\{char}" if char in "\\.+*?()|[]{}^$#&-~/" else char


def _bad(text: str, param: str) -> BadRequest:
    return BadRequest(f"{param}: {text!r:.60} cannot stand in a call's argument: write it in another way", param)
