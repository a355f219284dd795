"""Delimiters as patterns: regular expressions that match in linear time, in text of which more may come.

Response templates come with models, and what they are matched against comes out of models: neither is trusted. So the
patterns run as Thompson's automaton with captures (Pike's machine: R. Cox, "Regular Expression Matching: the Virtual
Machine Approach", 2009), which takes time in proportion to text times pattern whatever both are, gives the same match
as a backtracking engine does, and knows whether more text could still change the answer.

What is understood of Python's syntax: literals, `.` (any character), classes, `\\s \\w \\d` and their opposites, groups
(named ones capture), `|`, quantifiers, greedy or lazy, `^` and `\\A` (where a message begins, or
a region for what closes it), `$` and `\\Z` (where it
ends), and a lookahead `(?=...)` at the end of an alternative.

A token that a template names is one character to a pattern, its mark (see `marks`): half of a surrogate pair, which no
text holds. `.` matches a mark, and a class does where it has all characters of the token's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

MAX_SPAN = 256
"""Characters a delimiter may have."""
MAX_PROGRAM = 512
"""Instructions of one pattern, each of which may look at each character; the longest built-in one has 208."""
MAX_DEPTH = 20
"""Of nested groups."""


class PatternError(ValueError):
    """A pattern that is not understood here; the message says why."""


@dataclass(frozen=True, slots=True)
class Match:
    """Where a pattern matched, and what its named groups hold."""

    start: int
    end: int
    text: str
    groups: Mapping[str, str]


PENDING: Final = "pending"
"""More text may make a match, or a longer one."""
Pending = Literal["pending"]

Node = tuple[Any, ...]
_Saves = dict[str, tuple[int, int]]
_Thread = tuple[int, _Saves, int]  # next instruction, captures, where a lookahead began
_CLASSES = {"s": r"\s", "S": r"\S", "w": r"\w", "W": r"\W", "d": r"\d", "D": r"\D"}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class Pattern:
    """A delimiter.

    Args:
        node: its syntax (see `parse` and `literals`).
        names: mark -> the token's text, of the tokens that are matched by id.

    Attributes:
        literal: the one text that it matches; None where there are several.
        first: what a match may begin with, as the inside of a character class.
        at_start: another match may begin with anything, but only where the message begins.

    Raises:
        PatternError: it is too large, or could begin with anything, so that every character would have to wait.
    """

    def __init__(self, node: Node, names: Mapping[str, str]) -> None:
        self._names = names
        self._code: list[Node] = []
        self._emitted = 0
        node = _with_marks(node, {text: mark for mark, text in names.items()})
        self._emit(node)
        self._code.append(("match",))
        self.literal = _literal(node)
        self.first, self.at_start = _firsts(node)

    def match(self, text: str, pos: int, *, start: bool = False, final: bool = False) -> Match | Pending | None:
        """What begins at `pos`.

        Args:
            start: the message begins there.
            final: no more text comes.
        """
        if (literal := self.literal) is not None:
            if text.startswith(literal, pos):
                return Match(pos, pos + len(literal), literal, {})
            return PENDING if not final and literal.startswith(text[pos:]) else None
        return self._run(text, pos, start, final)

    def _run(self, text: str, pos: int, start: bool, final: bool) -> Match | Pending | None:
        code, length = self._code, len(text)
        best: tuple[int, _Saves] | None = None
        threads: list[_Thread] = []
        self._add(threads, set(), (0, {}, -1), pos, start, final and pos == length)
        for at in range(pos, min(length, pos + MAX_SPAN) + 1):
            alive: list[_Thread] = []
            for pc, saves, end in threads:
                if code[pc][0] == "match":
                    best = (at if end < 0 else end), saves
                    break  # what comes after it in the list is less wanted
                alive.append((pc, saves, end))
            if at == length or not alive:
                if alive and not final:
                    return PENDING
                break
            threads, seen = [], set[int]()
            for pc, saves, end in alive:
                if self._takes(code[pc], text[at]):
                    self._add(threads, seen, (pc + 1, saves, end), at + 1, False, final and at + 1 == length)
        if best is None:
            return None
        groups = {name: plain(text[a:b], self._names) for name, (a, b) in best[1].items() if b >= 0}
        return Match(pos, best[0], text[pos : best[0]], groups)

    def _add(self, threads: list[_Thread], seen: set[int], thread: _Thread, at: int, start: bool, over: bool) -> None:
        """Put a thread into the list where it next takes a character, or what it splits into, the most wanted first."""
        waiting = [thread]
        while waiting:
            pc, saves, end = waiting.pop()
            if pc in seen:
                continue
            seen.add(pc)
            op = self._code[pc]
            kind = op[0]
            if kind == "split":
                waiting += [(op[2], saves, end), (op[1], saves, end)]
            elif kind == "jump":
                waiting.append((op[1], saves, end))
            elif kind == "open":
                waiting.append((pc + 1, {**saves, op[1]: (at, -1)}, end))
            elif kind == "close":
                waiting.append((pc + 1, {**saves, op[1]: (saves[op[1]][0], at)}, end))
            elif kind == "ahead":
                waiting.append((pc + 1, saves, at))
            elif kind == "start":
                waiting += [(pc + 1, saves, end)] if start else []
            elif kind == "end" and over:
                waiting.append((pc + 1, saves, end))
            else:
                threads.append((pc, saves, end))

    def _takes(self, op: Node, char: str) -> bool:
        kind, what = op[0], op[-1]
        if kind == "set":
            return all(what.match(c) for c in self._names.get(char, char))
        return kind == "any" or (kind == "char" and bool(what == char))

    def _emit(self, node: Node) -> None:
        self._emitted += 1  # counted too, for what is empty makes no code however often it is repeated
        if max(len(self._code), self._emitted // 4) > MAX_PROGRAM:
            raise PatternError("the pattern is too large")
        kind = node[0]
        if kind in ("char", "any", "start", "end"):
            self._code.append(node)
        elif kind == "set":
            self._code.append(("set", re.compile(f"[{node[1]}]")))
        elif kind == "seq":
            for child in node[1:]:
                self._emit(child)
        elif kind == "alt":
            self._emit_either(node[1:])
        elif kind == "group":
            self._code.append(("open", node[1]))
            self._emit(node[2])
            self._code.append(("close", node[1]))
        elif kind == "ahead":
            self._code.append(("ahead",))
            self._emit(node[1])
        else:
            self._emit_repeated(*node[1:])

    def _emit_either(self, choices: Sequence[Node]) -> None:
        jumps = []
        for choice in choices[:-1]:
            split = self._reserve()
            self._emit(choice)
            jumps.append(self._reserve())
            self._code[split] = ("split", split + 1, len(self._code))
        self._emit(choices[-1])
        for jump in jumps:
            self._code[jump] = ("jump", len(self._code))

    def _emit_repeated(self, node: Node, least: int, most: int | None, lazy: bool) -> None:
        for _ in range(least):
            self._emit(node)
        if most is None:
            split = self._reserve()
            self._emit(node)
            self._code.append(("jump", split))
            self._split(split, lazy)
            return
        splits = []
        for _ in range(most - least):
            splits.append(self._reserve())
            self._emit(node)
        for split in splits:
            self._split(split, lazy)

    def _split(self, at: int, lazy: bool) -> None:
        inside, after = at + 1, len(self._code)
        self._code[at] = ("split", after, inside) if lazy else ("split", inside, after)

    def _reserve(self) -> int:
        self._code.append(("any",))
        return len(self._code) - 1


def plain(text: str, names: Mapping[str, str]) -> str:
    """The text with each mark as the token it stands for."""
    if not names or text.isascii():
        return text
    return "".join(names.get(char, char) for char in text) if any(mark in text for mark in names) else text


_NOTHING = re.compile(r"(?!)")


class Finder:
    """Finds the first of several delimiters, the longest where two begin together."""

    def __init__(self, patterns: Sequence[tuple[str, Pattern]]) -> None:
        self._patterns = patterns
        self._at_start = any(pattern.at_start for _, pattern in patterns)
        first = "".join(pattern.first for _, pattern in patterns)
        self._first = re.compile(f"[{first}]") if first else _NOTHING

    def find(self, text: str, pos: int, *, start: bool = False, final: bool = False) -> tuple[str, Match] | int:
        """The delimiter's key and match, or where what may still become one begins (the text's end: nowhere).

        Args:
            start: the message begins at `pos`.
            final: no more text comes.
        """
        if start and self._at_start:
            found = self._at(text, pos, True, final)
            if found is not None:
                return pos if found == PENDING else found
        while (candidate := self._first.search(text, pos)) is not None:
            found = self._at(text, candidate.start(), start and candidate.start() == 0, final)
            if found is not None:
                return candidate.start() if found == PENDING else found
            pos = candidate.start() + 1
        found = self._at(text, len(text), False, True) if final else None
        return found if isinstance(found, tuple) else len(text)

    def _at(self, text: str, pos: int, start: bool, final: bool) -> tuple[str, Match] | Pending | None:
        best: tuple[str, Match] | None = None
        for key, pattern in self._patterns:
            match = pattern.match(text, pos, start=start, final=final)
            if match == PENDING:
                return PENDING
            if isinstance(match, Match) and (best is None or match.end > best[1].end):
                best = key, match
        return best


# ── syntax ──


def literals(texts: Iterable[str]) -> Node:
    """Any of the texts, the longest first."""
    ordered = sorted(dict.fromkeys(texts), key=len, reverse=True)
    choices: list[Node] = [("seq", *(("char", char) for char in text)) for text in ordered]
    return choices[0] if len(choices) == 1 else ("alt", *choices)


def parse(source: str) -> Node:
    """A pattern's syntax.

    Raises:
        PatternError: it is not understood.
    """
    parser = _Parser(source)
    node = parser.either(0)
    if parser.pos < len(source):
        raise PatternError(f"unbalanced parenthesis in {source!r:.80}")
    return node


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.pos = 0

    def either(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise PatternError("groups are nested too deeply")
        choices = [self._sequence(depth)]
        while self._took("|"):
            choices.append(self._sequence(depth))
        return choices[0] if len(choices) == 1 else ("alt", *choices)

    def _sequence(self, depth: int) -> Node:
        nodes: list[Node] = []
        while self.pos < len(self.source) and self.source[self.pos] not in "|)":
            if nodes and nodes[-1][0] == "ahead":
                raise PatternError("a lookahead must come last")
            nodes.append(self._repeated(self._atom(depth)))
        return ("seq", *nodes)

    def _atom(self, depth: int) -> Node:
        char = self._next()
        if char == "(":
            return self._group(depth)
        if char == "[":
            return ("set", self._class())
        if char == "\\":
            return self._escape()
        if char in "*+?":
            raise PatternError(f"nothing to repeat at {self.pos - 1} of {self.source!r:.80}")
        return {".": ("any",), "^": ("start",), "$": ("end",)}.get(char, ("char", char))

    def _group(self, depth: int) -> Node:
        name = ""
        ahead = self._took("?=")
        if not ahead and not self._took("?:") and self._took("?"):
            named = re.compile(r"P?<([A-Za-z_]\w*)>").match(self.source, self.pos)
            if named is None:
                raise PatternError(f"(?{self.source[self.pos : self.pos + 2]} is not understood")
            name, self.pos = named[1], named.end()
        node = self.either(depth + 1)
        if not self._took(")"):
            raise PatternError("a parenthesis is not closed")
        return ("ahead", node) if ahead else ("group", name, node) if name else node

    def _escape(self) -> Node:
        char = self._next()
        if char in _CLASSES:
            return ("set", _CLASSES[char])
        if char in "AZ":
            return ("start",) if char == "A" else ("end",)
        if char.isalnum() and char not in _CONTROLS:
            raise PatternError(f"\\{char} is not understood")
        return ("char", _CONTROLS.get(char, char))

    def _class(self) -> str:
        begin = self.pos
        self._took("^")
        self._took("]")
        while self._next() != "]":
            self.pos += self.source[self.pos - 1] == "\\"
        inside = self.source[begin : self.pos - 1]
        try:
            re.compile(f"[{inside}]")
        except re.error as error:
            raise PatternError(f"[{inside}]: {error}") from error
        return inside

    def _repeated(self, node: Node) -> Node:
        counts = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        while True:
            counted = re.compile(r"\{(\d{1,3})(,?)(\d{0,3})\}").match(self.source, self.pos)
            if counted is not None:
                least, self.pos = int(counted[1]), counted.end()
                most = int(counted[3]) if counted[3] else None if counted[2] else least
            elif self.source[self.pos : self.pos + 1] in counts and self.pos < len(self.source):
                least, most = counts[self._next()]
            else:
                return node
            if most is not None and most < least:
                raise PatternError("a count is less than its least")
            if node[0] in ("ahead", "start", "end"):
                raise PatternError("an assertion cannot be repeated")
            node = ("rep", node, least, most, self._took("?"))

    def _took(self, text: str) -> bool:
        if self.source.startswith(text, self.pos):
            self.pos += len(text)
            return True
        return False

    def _next(self) -> str:
        if self.pos >= len(self.source):
            raise PatternError(f"{self.source!r:.80} ends too soon")
        self.pos += 1
        return self.source[self.pos - 1]


def _with_marks(node: Node, marks: Mapping[str, str]) -> Node:
    """The same with every run of characters that spells a token replaced by its mark."""
    if node[0] != "seq":
        return tuple(_with_marks(child, marks) if isinstance(child, tuple) else child for child in node)
    nodes: list[Node] = []
    run = ""
    for child in (*node[1:], ("end of the run",)):
        assert isinstance(child, tuple)
        if child[0] == "char":
            run += str(child[1])
            continue
        nodes += [("char", char) for char in marked(run, marks)]
        run = ""
        nodes.append(_with_marks(child, marks))
    return ("seq", *nodes[:-1])


def marked(text: str, marks: Mapping[str, str]) -> str:
    """The text with each token in it as its mark.

    Args:
        marks: a token's text -> mark.
    """
    if not marks:
        return text
    tokens = sorted(marks, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, tokens)), lambda found: marks[found[0]], text)


def _literal(node: Node) -> str | None:
    if node[0] == "char":
        return str(node[1])
    if node[0] == "seq":
        parts = [_literal(child) for child in node[1:]]
        return None if None in parts else "".join(map(str, parts))
    return None


def _firsts(node: Node) -> tuple[str, bool]:
    """See `Pattern.first` and `Pattern.at_start`."""
    found: list[str] = []
    at_start: list[bool] = []
    if _collect(node, found, at_start):
        raise PatternError("a delimiter must not match an empty text")
    return "".join(found), bool(at_start)


def _collect(node: Node, found: list[str], at_start: list[bool]) -> bool:
    """Whether the node may match without taking a character."""
    kind = node[0]
    if kind == "char":
        found.append(re.escape(str(node[1])))
        return False
    if kind == "set" and not str(node[1]).startswith("^"):
        found.append(str(node[1]))
        return False
    if kind in ("any", "set"):
        raise PatternError("a delimiter must not begin with any character")
    if kind == "start":
        at_start.append(True)
        return False  # what follows begins where the message does
    if kind == "end":
        return False
    if kind == "seq":
        return all(_collect(child, found, at_start) for child in node[1:])
    if kind == "alt":
        empty = [_collect(child, found, at_start) for child in node[1:]]
        return any(empty)
    if kind == "group":
        return _collect(node[2], found, at_start)
    if kind == "ahead":
        return _collect(node[1], found, at_start)
    return _collect(node[1], found, at_start) or node[2] == 0


def split_at_group(node: Node, name: str) -> tuple[Node, Node]:
    """What comes before a named group, and what comes after it.

    Raises:
        PatternError: it is not a part of the outermost sequence.
    """
    if node[0] == "seq":
        for place, child in enumerate(node[1:], 1):
            if child[:2] == ("group", name):
                return ("seq", *node[1:place]), ("seq", *node[place + 1 :])
    raise PatternError(f"there is no group {name!r} in the pattern's outermost sequence")
