"""Reads what a model says as it comes: content, reasoning and calls, whatever the pieces it comes in.

Text is held back only while it may still become a delimiter, and a call until it is whole: what turns out to be none is
content, so that no text is lost. A call that grows beyond HOLD characters, in a form whose arguments are JSON as they
stand, is believed by then, and its arguments go on as they come. All of this depends on the text alone, so that every
way to cut it into pieces gives the same message.

Memory and time are linear in the text: each character is looked at once by each pattern that could begin with it, and
a delimiter has at most `patterns.MAX_SPAN` characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.patterns import Finder, Match, plain
from octavo.text.responses.schemas import choices, resolved
from octavo.text.responses.template import Field
from octavo.text.responses.values import Call, CallBody, Schemas

HOLD = 512
"""Characters of a call that are waited for before it is believed."""
MAX_SPACES = 1024
"""Spaces before a delimiter that belong to it, and not to the text before it."""

_MEMBER = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\\ud800-\udfff]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


_ARGUES = re.compile(r'"(?:arguments|parameters)"\s*:')
_FENCE = re.compile("```(?:json)?")
_ESCAPES = {quote: re.compile(rf"\\.|\\|{quote}", re.DOTALL) for quote in "\"'"}


@dataclass(frozen=True, slots=True)
class MessagePart:
    """More of a message.

    Attributes:
        kind: "call" begins one; "arguments" is a part of the arguments of the last one that began.
        text: of the content, the reasoning or the arguments; a call's name.
        index: of the call, from 0.
        id: of a call that begins.
    """

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str
    index: int = 0
    id: str = ""


class ResponseParser:
    """One message.

    Args:
        template: how the model writes.
        schemas: the tools that may be called; None where none may be, and calls are content.
        prompt: what the message goes on from. What of it comes after the last beginning of an assistant's turn is read
            first: templates open the reasoning there.
        new_id: of calls to which the model gives none.
        one_call: only the first is wanted.

    Attributes:
        calls: that began.
    """

    def __init__(
        self,
        template: BoundTemplate,
        schemas: Schemas | None,
        prompt: str = "",
        new_id: Callable[[], str] = str,
        *,
        one_call: bool = False,
    ) -> None:
        self._template = template
        self._schemas = schemas or {}
        self._new_id = new_id
        self._one_call = one_call
        self._outside = template.outside(calls=schemas is not None)
        self._parts: list[MessagePart] = []
        self._buffer = ""
        self._begun = False
        self._field: Field | None = None
        self._content = _Trimmed(template.strips_content)
        self._reasoning = _Trimmed(True)
        self._call: _OpenCall | None = None
        self.calls = 0
        self.push(template.end_of_prompt(prompt))
        self.calls = 0

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._field is not None and self._field.role == "reasoning"

    def push(self, text: str) -> list[MessagePart]:
        """Take in more text, in which marks stand for tokens; returns what is final because of it."""
        self._buffer += text
        self._advance(final=False)
        return self._taken()

    def finish(self, *, cut: bool = False) -> list[MessagePart]:
        """The rest, where no more text comes.

        Args:
            cut: the model did not end its message itself, so a call that is not closed is none.
        """
        pending = self._hold()
        if pending < len(self._buffer) and self._buffer[pending] in self._template.names:
            self._buffer = self._buffer[:pending]  # the beginning of a delimiter, which is no text
        self._advance(final=True)
        if self._call is not None:
            self._close_call(None, cut=cut)
        self._say("reasoning", self._reasoning.end())
        self._say("content", self._content.end())
        return self._taken()

    def _taken(self) -> list[MessagePart]:
        parts, self._parts = self._parts, []
        return parts

    def _hold(self) -> int:
        """Where in the buffer something begins that could still become a delimiter."""
        if self._call is not None:
            return len(self._buffer)
        found = self._finder().find(self._buffer, 0, start=not self._begun)
        return found if isinstance(found, int) else len(self._buffer)

    def _finder(self) -> Finder:
        return self._outside if self._field is None else self._template.ends[self._field.name]

    # ── regions ──

    def _advance(self, *, final: bool) -> None:
        while self._call_step(final) if self._call is not None else self._text_step(final):
            pass

    def _text_step(self, final: bool) -> bool:
        """Take text up to the next delimiter; whether there was one."""
        found = self._finder().find(self._buffer, 0, start=not self._begun, final=final)
        end = found if isinstance(found, int) else found[1].start
        if end:
            self._begun = True
            self._read(self._buffer[:end])
        if isinstance(found, int):
            self._buffer = self._buffer[end:]
            return False
        opened = self._buffer[end : found[1].end]
        self._buffer = self._buffer[found[1].end :]
        self._begun = True
        if self._field is not None:
            self._close_text()
        elif found[0]:
            self._open(self._template.fields[found[0]], found[1], opened)
        else:
            self._content.boundary()
            return bool(opened)
        return True

    def _read(self, text: str) -> None:
        """Text of the region that is open, or of none."""
        text = plain(text, self._template.names)
        if self.in_reasoning:
            self._say("reasoning", self._reasoning.add(text))
        else:
            self._say("content", self._content.add(text))

    def _open(self, field: Field, match: Match, opened: str) -> None:
        if field.role == "calls":
            self._call = _OpenCall(field, match.groups, self._template.bodies[field.name], opened)
            return
        self._field = field
        self._content.boundary()
        if field.role == "reasoning":
            self._reasoning.boundary()

    def _close_text(self) -> None:
        if self.in_reasoning:
            self._reasoning.boundary()
        self._content.boundary()
        self._field = None

    def _say(self, kind: Literal["content", "reasoning", "arguments"], text: str) -> None:
        if text:
            self._parts.append(MessagePart(kind, text, max(0, self.calls - 1)))

    # ── calls ──

    def _call_step(self, final: bool) -> bool:
        """Take more of the open call's body; whether it closed."""
        call = self._call
        assert call is not None
        pos = 0
        while True:
            found = call.find(self._buffer, pos, final)
            if isinstance(found, int):
                self._more(call, self._buffer[:found])
                self._buffer = self._buffer[found:]
                return False
            key, match = found
            if call.quote:
                call.quote = None
            elif key:
                call.quote = call.body.quotes[key]
            else:
                self._more(call, self._buffer[: match.start])
                self._buffer = self._buffer[match.end :]
                self._close_call(match)
                return True
            pos = match.end

    def _more(self, call: _OpenCall, text: str) -> None:
        if call.arguments is not None:
            self._argue(call, text)
            return
        call.texts.append(text)
        call.length += len(text)
        if call.undecided and call.length >= HOLD:
            self._decide(call)

    def _decide(self, call: _OpenCall) -> None:
        """Whether a long call is believed from here on."""
        call.undecided = False
        body = call.text()
        name, begin = call.head(body[:HOLD])
        if not name or (call.is_bare and name not in self._schemas):
            return
        call.arguments = _Object()
        self._begin_call(Call(name, "", call.captures.get("id", "")))
        self._argue(call, body[begin:])

    def _argue(self, call: _OpenCall, text: str) -> None:
        assert call.arguments is not None
        text = call.arguments.take(text)
        if not call.ignored:
            self._say("arguments", plain(text, self._template.names))

    def _close_call(self, match: Match | None, *, cut: bool = False) -> None:
        """End the open call.

        Args:
            match: what closed it; None where the message ended.
        """
        call, self._call = self._call, None
        assert call is not None
        if call.arguments is not None:
            return
        body = call.text()
        captures = {**call.captures, **(match.groups if match else {})}
        incomplete = match is None and cut and self._template.closes(call.field.name)
        calls = None if incomplete else call.body.calls(body, captures, self._schemas)
        known = calls is not None and all(made.name in self._schemas for made in calls)
        argues = call.field.content != "json" or _ARGUES.search(body) is not None
        if call.is_bare and not (known and argues):
            calls = None  # it could be an answer in JSON
        if calls is None:
            if match is None and (not body.strip() or (cut and self.calls)):
                self._content.boundary()  # an opening alone is no text, and half a call after whole ones helps nobody
                return
            closed = "" if match is None else match.text
            self._say("content", self._content.add(plain(call.opened + body + closed, self._template.names)))
            return
        for made in calls:
            self._begin_call(made)

    def _begin_call(self, call: Call) -> None:
        self._content.boundary()
        if self._call is not None:
            self._call.ignored = self._one_call and self.calls > 0
        if self._one_call and self.calls > 0:
            return
        self.calls += 1
        self._parts.append(MessagePart("call", call.name, self.calls - 1, call.id or self._new_id()))
        self._say("arguments", call.arguments)


class _OpenCall:
    """A call whose end has not come.

    Attributes:
        texts, length: its body as far as it is held.
        quote: what closes the string that is open in it, and whether backslashes hide that.
        undecided: it is shorter than HOLD.
        arguments: where the arguments are, once it is believed.
        ignored: it is one too many.
        is_bare: nothing but its own form, or a fence of Markdown, tells it from content.
    """

    def __init__(self, field: Field, captures: Mapping[str, str], body: CallBody, opened: str) -> None:
        self.field = field
        self.captures = dict(captures)
        self.body = body
        self.opened = opened
        self.is_bare = not _FENCE.sub("", opened).strip()
        self.texts: list[str] = []
        self.length = 0
        self.quote: tuple[str, bool] | None = None
        self.undecided = bool(body.streams)
        self.arguments: _Object | None = None
        self.ignored = False

    def text(self) -> str:
        """The body so far."""
        self.texts = ["".join(self.texts)]
        return self.texts[0]

    def find(self, text: str, pos: int, final: bool) -> tuple[str, Match] | int:
        """The end of the body or of the string in it, or the beginning of a string; or where one may come."""
        if self.quote is None:
            return self.body.end.find(text, pos, start=not self.length and not pos, final=final)
        end, hides = self.quote
        if not hides:
            return self.body.ends[end].find(text, pos, final=final)
        for found in _ESCAPES[end].finditer(text, pos):
            if found[0] == end:
                return "", Match(found.start(), found.end(), end, {})
            if found[0] == "\\":
                return found.start()  # what it hides has not come
        return len(text)

    def head(self, body: str) -> tuple[str, int]:
        """The name, and where the arguments begin; "" where the body does not say so in its first characters."""
        if self.body.streams == "body":
            begin = len(body) - len(body.lstrip())
            return (self.captures.get("name", ""), begin) if body.startswith("{", begin) else ("", 0)
        match = _MEMBER.match(body)
        return ("", 0) if match is None else (match[1], match.end())


class _Object:
    """Finds the end of a JSON object in text that comes in pieces."""

    _STRUCTURE = re.compile(r'[{}"]')
    _INSIDE = re.compile(r'\\.|"', re.DOTALL)

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._over = False

    def take(self, text: str) -> str:
        """What of the text belongs to the object."""
        if self._over:
            return ""
        pos = 1 if self._escaped and text else 0
        self._escaped = self._escaped and not text
        while (found := (self._INSIDE if self._in_string else self._STRUCTURE).search(text, pos)) is not None:
            pos = found.end()
            if found[0] == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if found[0] == "{" else -1
                if not self._depth:
                    self._over = True
                    return text[:pos]
        if self._in_string and text:
            self._escaped = text.endswith("\\", pos)
        return text


class _Trimmed:
    """Text without the spaces around the delimiters next to it.

    Args:
        strips: False lets all of it through.
    """

    def __init__(self, strips: bool) -> None:
        self._strips = strips
        self._held = ""
        self._said = False
        self._bounded = False  # a delimiter came since the last text that is no space

    def add(self, text: str) -> str:
        """More text; returns what is to be said now."""
        if not self._strips or not text:
            return text
        core = text.strip()
        begin = text.find(core) if core else len(text)
        self._held += text[:begin]
        said = self._overflow()
        if core:
            said += self._held + core if self._said or not self._bounded else core
            self._said, self._bounded = True, False
            self._held = text[begin + len(core) :]
            said += self._overflow()
        return said

    def _overflow(self) -> str:
        if len(self._held) <= MAX_SPACES:
            return ""
        said, self._held = self._held[:-MAX_SPACES], self._held[-MAX_SPACES:]
        self._said = True
        return said

    def boundary(self) -> None:
        """A delimiter."""
        self._bounded = True
        if not self._said:
            self._held = ""

    def end(self) -> str:
        """The rest."""
        return "" if self._bounded else self._held


def properties(functions: Iterable[Mapping[str, Any]]) -> Schemas:
    """The parser's view of what may be called: OpenAI's function definitions."""
    found = {}
    for function in functions:
        parameters = function.get("parameters")
        root = parameters if isinstance(parameters, Mapping) else {}
        listed = resolved(root, root).get("properties")
        known = listed if isinstance(listed, Mapping) else {}
        found[str(function["name"])] = {name: _typed(schema, root) for name, schema in known.items()}
    return found


def _typed(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema that says its types at its top."""
    if not isinstance(schema, Mapping) or isinstance(schema.get("type"), str):
        return schema
    kinds = [choice["type"] for choice in choices(schema, root) if isinstance(choice.get("type"), str)]
    return {"type": list(dict.fromkeys(kinds))} if kinds else schema
