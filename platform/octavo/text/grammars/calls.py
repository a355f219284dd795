"""The grammar of a model's calls, made of the response template that reads them.

A template's patterns allow several ways to write a call. The one that the model's chat template renders is the field's
`written`, or else the shortest that the patterns match:

    begin  open arguments close  between  open arguments close  end

`open` has the call's name at `{name}`, and `{number}` and `{line}` stand for digits and an optional line break. In tags
`argument` is written for each, with `{key}`, `{kind}` and `{value}`; `kinds` has what stands for `{kind}` by a type's
name, or for all others by "", and a text holds none of what `apart` matches. `trigger` is what tells that a call has
begun; `alone` says that a message has one call; `spaced`, that chat templates write arguments as `json.dumps` does, so
that all between keys and values is forced. Tokens of the model stand as their ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from octavo.errors import BadRequest
from octavo.text.grammars.arguments import ANY_TEXT, PYTHON, Arguments, RawValue, Style
from octavo.text.grammars.quoted import may_hold, quoted
from octavo.text.grammars.sources import Rule, literal, regex, schema_text
from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.patterns import Node, parse
from octavo.text.responses.template import Field

_MEMBER = '{"name": "{name}", "arguments": '
_HOLE = re.compile(r"(\{(?:name|number|line|key|kind|value)\})")
_FIXED = {"{number}": "/[0-9]{1,3}/", "{line}": '("\\n")?'}
_INPUT = "input"
"""The one parameter of a custom tool."""
SHORT_TRIGGER = 5
"""Characters of a text, at least, that tells that a call has begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallableTool:
    """A function that may be called.

    Attributes:
        parameters: the JSON schema of its arguments.
        input_grammar: Lark of the one argument that a custom tool has, a text; "" for any other tool.
        custom: its parameters are made of something else that the client sent.
        strict: what is not implemented of it is refused.
        param: the request's field that holds it, for errors.
    """

    name: str
    parameters: Mapping[str, Any] | None = None
    input_grammar: str = ""
    custom: bool = False
    strict: bool = False
    param: str = "tools"


@dataclass(frozen=True, slots=True)
class Written:
    """How calls are written; see the module."""

    open: str
    begin: str = ""
    close: str = ""
    between: str = ""
    end: str = ""
    argument: str = ""
    trigger: str = ""
    kinds: Mapping[str, str] | None = None
    apart: Sequence[str] = ()
    alone: bool = False
    spaced: bool = False


class CallGrammar:
    """Grammars of calls for one model.

    Args:
        template: how its answers are read.
        ends: its end tokens: they are no part of a grammar.

    Attributes:
        written: None where the template does not tell how a call is written.
    """

    def __init__(self, template: BoundTemplate, ends: Collection[int]) -> None:
        self._ids = {text: token for token, mark in template.marks.items() if (text := template.names[mark])}
        self._tokens = re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))) or "(?!)")
        self._ends = ends
        self._texts: dict[str, tuple[int, str]] = {}
        self._grammars: list[tuple[str, str]] = []
        self._field = next((field for field in template.fields.values() if field.role == "calls"), None)
        self.written = None if self._field is None else _written(self._field)

    def calls(self, tools: Sequence[CallableTool], *, many: bool) -> Rule:
        """A message's calls of the tools: one, or with `many` one or more.

        Raises:
            BadRequest: the model's form of a call is not known, or a schema is refused.
        """
        form = self._known(tools)
        choice, rules = self._choice(form, tools)
        text = f"{self.spelled(form.begin)} call"
        if many and not form.alone:
            text += f" ({self.spelled(form.between)} call)*"
        text += f" {self.spelled(form.end)}"
        return Rule(text, tuple(self._grammars), f"call: {choice}\n{rules}", is_json=self._writes_json())

    def begun(
        self, tools: Sequence[CallableTool], *, many: bool
    ) -> tuple[tuple[int, ...], tuple[str, ...], Rule] | None:
        """What begins a call, as tokens or as texts, and what follows it; None where it cannot be told.

        Raises:
            BadRequest: a schema is refused.
        """
        form = self.written
        if form is None or not form.trigger:
            return None
        if form.begin and (at := form.begin.find(form.trigger)) >= 0:
            rest = replace(form, begin=form.begin[at + len(form.trigger) :])
            choice, rules = self._choice(rest, tools)
            more = f"({self.spelled(form.between)} call)*" if many else ""
            text = f"{self.spelled(rest.begin)} call {more} {self.spelled(form.end)}"
            rule = Rule(text, tuple(self._grammars), f"call: {choice}\n{rules}", is_json=self._writes_json())
        else:
            choice, rules = self._choice(replace(form, open=form.open.partition(form.trigger)[2]), tools)
            rule = Rule("call", tuple(self._grammars), f"call: {choice}\n{rules}", is_json=self._writes_json())
        token = self._ids.get(form.trigger)
        return ((), (form.trigger,), rule) if token is None else ((token,), (), rule)

    def begins_with_token(self) -> bool:
        """Whether a call can be told from other text by its first token."""
        form = self.written
        return form is not None and self._tokens.match(form.begin + form.open) is not None

    def token(self, text: str) -> int | None:
        """The token that a text is; None where it is none, or several."""
        return self._ids.get(text)

    def spelled(self, text: str) -> str:
        """A text as Lark: its tokens by id, without the model's end tokens."""
        parts: list[str] = []
        pos = 0
        for match in self._tokens.finditer(text):
            parts += [literal(text[pos : match.start()])] if match.start() > pos else []
            parts += [] if self._ids[match[0]] in self._ends else [f"<[{self._ids[match[0]]}]>"]
            pos = match.end()
        parts += [literal(text[pos:])] if pos < len(text) else []
        return " ".join(parts)

    # ── calls ──

    def _known(self, tools: Sequence[CallableTool]) -> Written:
        if self.written is None:
            raise BadRequest(
                "how this model writes a call is not known here, so none can be forced: tool_choice must be auto",
                "tool_choice",
            )
        return self.written

    def _choice(self, form: Written, tools: Sequence[CallableTool]) -> tuple[str, str]:
        """The right side of a rule for a call of one of the tools, and the rules that it refers to."""
        choices, rules = [], []
        self._texts, self._grammars = {}, []
        for number, tool in enumerate(tools):
            arguments, more = self._arguments(form, tool, number)
            opening = self._filled(form.open.replace("{name}", tool.name))
            rules.append(f"call_{number}: {opening} {arguments} {self._filled(form.close)}\n{more}")
            choices.append(f"call_{number}")
        rules += [rule for _, rule in self._texts.values()]
        return " | ".join(choices), "".join(rules)

    def _writes_json(self) -> bool:
        return self._field is not None and self._field.content == "json" and not self._field.args

    def _filled(self, text: str) -> str:
        return " ".join(_FIXED.get(part) or self.spelled(part) for part in _HOLE.split(text) if part)

    def _arguments(self, form: Written, tool: CallableTool, number: int) -> tuple[str, str]:
        assert self._field is not None
        if tool.input_grammar and (bound := self._input(form, tool, number)):
            return bound, ""
        schema = _of_object(tool)
        if self._writes_json():
            return f"%json {schema_text(schema, tool.param, strict=tool.strict, spaced=form.spaced)}", ""
        schema_text(schema, tool.param)  # its size
        style = self._style()
        writer = Arguments(f"t{number}", schema, tool.param, strict=tool.strict, style=style)
        if self._field.content == "xml-inline":
            right = self._tags(form, writer, f"t{number}")
        elif self._field.content == "pythonic":
            pairs = [
                (f"{literal(name + '=')} {writer.value(part)}", needed) for name, part, needed in writer.properties()
            ]
            right = writer.listed(pairs)
            if writer.is_open:
                pair = rf'/[A-Za-z_]\w{{0,63}}/ "=" {writer.value({})}'
                right = f'({pair} (", " {pair})*)?'
        else:
            right = writer.value(schema)
        return right, "".join(writer.rules)

    def _input(self, form: Written, tool: CallableTool, number: int) -> str:
        """The argument of a custom tool; "" where it could take the text that ends it as its own."""
        assert self._field is not None
        name, grammar, style = f"input_{number}", tool.input_grammar, self._style()
        if self._field.content == "xml-inline":
            opening, _, after = form.argument.partition("{value}")
            kind = (form.kinds or {}).get("string", "")
            before, ending = self._opened(opening.replace("{kind}", kind), _INPUT), self._filled(after)
            if not self._tokens.match(after) and may_hold(grammar, after):
                return ""
        else:
            quote = style.quote or literal('"')
            before, ending = f"{literal(self._before_input(style))} {quote}", quote
            if self._field.content != "pythonic":
                ending += f" {literal('}')}"
            if style.quote is None:
                grammar = quoted(grammar, tool.param)
            elif style.quote[0] != "<" and may_hold(grammar, json.loads(style.quote)):
                return ""
        self._grammars.append((name, grammar))
        return f"{before} @{name} {ending}"

    def _before_input(self, style: Style) -> str:
        assert self._field is not None
        if self._field.content == "pythonic":
            return f"{_INPUT}="
        key = _INPUT if style.bare_keys else f'"{_INPUT}"'
        return "{" + key + (style.colon if self._field.args else ": ")

    def _style(self) -> Style:
        assert self._field is not None
        delimiters = self._field.args.get("string_delims") or []
        if not self._field.args:
            return PYTHON
        quote = self.spelled(delimiters[0][0]) if delimiters else None
        return Style(quote, {}, bool(self._field.args.get("unquoted_keys")), ",", ":")

    # ── tags ──

    def _tags(self, form: Written, writer: Arguments, prefix: str) -> str:
        parts = []
        for number, (name, schema, needed) in enumerate(writer.properties()):
            right = self._tag(form, writer, f"{prefix}_a{number}", _key(name, self._field), schema)
            parts.append(right if needed else f"({right})?")
        if writer.is_open:
            parts.append(f"({self._tag(form, writer, f'{prefix}_any', None, {})})*")
        return " ".join(parts)

    def _tag(self, form: Written, writer: Arguments, name: str, key: str | None, schema: Any) -> str:
        """One argument in its tag, whose name any text may be if `key` is None."""
        before, _, after = form.argument.partition("{value}")
        choices = []
        for number, value in enumerate(writer.raw(schema)):
            rule = f"{name}_{number}"
            kind = (form.kinds or {}).get("string" if value.is_text else "", "")
            opening = self._opened(before.replace("{kind}", kind), key)
            rest = f"({value.right}) {self._filled(after)}" if value.right else self._text(form, value, after)
            writer.rules.append(f"{rule}: {opening} {rest}\n")
            choices.append(rule)
        return f"({' | '.join(choices)})"

    def _opened(self, text: str, key: str | None) -> str:
        if key is not None:
            return self._filled(text.replace("{key}", key))
        before, _, after = text.partition("{key}")
        return f"{self._filled(before)} /[A-Za-z_][A-Za-z0-9_.-]{{0,63}}/ {self._filled(after)}"

    def _text(self, form: Written, value: RawValue, after: str) -> str:
        """A free text and what ends it: a token, which no text holds, or the first place where it is spelled."""
        token = self._tokens.search(after)
        apart = [regex(source) for source in form.apart if not self._tokens.search(source)]
        if token is not None and "{" not in after[: token.start()]:
            head, rest = after[: token.start()], f"{self.spelled(token[0])} {self._filled(after[token.end() :])}"
            text = f"{_without(value.pattern, apart)} {literal(head) if head else ''}"
            return f"{self._shared('TEXT', text)} {rest}"
        end = _TAG.match(after)
        head = after if end is None else end[0]
        if value.pattern:
            apart.append(regex(re.escape(head)))
        name = self._shared("TEXT", _without(value.pattern, apart))
        return f"{self._shared('ended', f'{name} {literal(head)}', '[lazy]')} {self._filled(after[len(head) :])}"

    def _shared(self, name: str, right: str, options: str = "") -> str:
        """The name of a rule, one for all that have the same right side: grammars may have few terminals."""
        number = self._texts.setdefault(right, (len(self._texts), f"{name}_{len(self._texts)}{options}: {right}\n"))[0]
        return f"{name}_{number}"


def _of_object(tool: CallableTool) -> dict[str, Any]:
    """The schema of a tool's arguments, which are an object whatever else the schema allows."""
    schema = {"type": "object", **(tool.parameters or {})}
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if "object" not in kinds:
        raise BadRequest(
            f"{tool.param}: arguments have names, so their type must be an object, got {kinds!r:.80}",
            tool.param,
        )
    return {**schema, "type": "object"}


_TAG = re.compile(r"[^<{]*<[^>{]*>")


def _without(pattern: str | None, apart: Sequence[str]) -> str:
    """A terminal of a text that a pattern matches, in which nothing matches any of the others."""
    parts = [regex(pattern or ANY_TEXT), *(f"~/(?s:.*){source[1:-1]}(?s:.*)/" for source in apart)]
    return parts[0] if len(parts) == 1 else f"({' & '.join(parts)})"


def _key(name: str, field: Field | None) -> str:
    escaped = field is not None and field.args.get("escaped_keys")
    for plain, shown in _ESCAPES if escaped else ():
        name = name.replace(plain, shown)
    return name


_ESCAPES = (("&", "&amp;"), ('"', "&quot;"), ("<", "&lt;"), (">", "&gt;"))


# ── what a template tells ──


def _written(field: Field) -> Written | None:
    """How a field's calls are written; None where its patterns do not tell."""
    if field.written:
        try:
            return Written(**field.written)
        except TypeError:  # a checkpoint's own, in which something else is said
            return None
    opening, closing = shortest(field.opening), "" if field.closing is None else shortest(field.closing)
    if opening is None or closing is None:
        return None
    named = "{name}" in opening
    if field.content == "xml-inline":
        argument = shortest(parse(str(field.args.get("tag_pattern"))))
        return (
            Written(opening, close=closing, argument=argument, trigger=_trigger(opening))
            if named and argument
            else None
        )
    if field.content == "pythonic":
        return Written("{name}(", f"{opening}[", ")", ", ", f"]{closing}", trigger=_trigger(opening))
    if field.each:
        return Written(_MEMBER, f"{opening}[", "}", ", ", f"]{closing}", trigger=_trigger(opening), spaced=True)
    function = field.transform.get("function") if isinstance(field.transform, Mapping) else None
    if function == "{content}":
        return Written(opening + _MEMBER, close="}" + closing, trigger=_trigger(opening), spaced=True)
    if function == {"name": "{name}", "arguments": "{content}"} and named:
        return Written(opening, close=closing, trigger=_trigger(opening))
    return None


def _trigger(opening: str) -> str:
    """What an opening always begins with, where that tells a call from other text."""
    text = opening.partition("{")[0].rstrip()
    return text if len(text) >= SHORT_TRIGGER else ""


def shortest(node: Node | None) -> str | None:
    """The shortest text that a pattern surely matches, with holes for its groups; None where it does not say one."""
    if node is None:
        return None
    kind = node[0]
    if kind == "char":
        return str(node[1])
    if kind == "group":
        return f"{{{node[1]}}}" if node[1] in ("name", "key", "kind", "value") else shortest(node[2])
    if kind in ("start", "end", "ahead"):
        return ""
    if kind == "rep":
        return shortest(node[1]) if node[2] == 1 else "" if node[2] == 0 else None
    if kind == "seq":
        parts = [shortest(child) for child in node[1:]]
        return None if None in parts else "".join(map(str, parts))
    return next((text for child in node[1:] if (text := shortest(child)) is not None), None) if kind == "alt" else None
