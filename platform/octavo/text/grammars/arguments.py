"""A call's arguments as rules of Lark, in the forms that are not JSON: tags, Python's, Gemma's.

What JSON schema says of a value is kept to as far as these forms allow: types, `enum`, `const`, `required`, objects,
arrays with their lengths, references, choices; a string's pattern and length; all that concerns a number. Keywords
beyond these are refused for a strict tool, and otherwise ignored, as the library does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import BadRequest
from octavo.text.grammars.sources import regex, schema_text
from octavo.text.responses.schemas import choices, resolved

_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "$defs", "definitions", "$schema", "$id"}
_KEPT = {
    "string": {"enum", "const", "pattern", "minLength", "maxLength"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
    "": {"type", "anyOf", "oneOf", "$ref"},
}
MAX_ITEMS = 1024
"""Elements that a schema may demand of an array."""
MAX_LEVEL = 24
"""Levels of values that are written by their schemas; below, values of any kind stand."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a form writes values that are not calls' own texts.

    Attributes:
        quote: what stands before and after a string, in Lark; None where strings are JSON's.
        names: of the three constants.
        bare_keys: keys of objects are not quoted.
        comma, colon: between elements; between a key and its value.
    """

    quote: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    bare_keys: bool = False
    comma: str = ", "
    colon: str = ": "


PYTHON = Style(names={"true": "True", "false": "False", "null": "None"})


@dataclass(frozen=True, slots=True)
class RawValue:
    """A value in a tag.

    Attributes:
        is_text: it is a string, and stands as it is.
        right: the right side of a rule for it; "" where it is a free text.
        pattern: what such a text matches as a whole; None for any.
    """

    is_text: bool
    right: str
    pattern: str | None = None


class Arguments:
    """Writes rules for the arguments of one tool.

    Args:
        prefix: of the names of its rules, which no other tool's have.
        schema: of the arguments, an object's.
        param: the request's field, for errors.
        strict: refuse keywords that are not kept to.
        style: of values in Python's form or Gemma's.

    Attributes:
        rules: lines of Lark.
    """

    def __init__(
        self, prefix: str, schema: Mapping[str, Any], param: str, *, strict: bool = False, style: Style = PYTHON
    ) -> None:
        self._prefix = prefix
        self._root = schema
        self._param = param
        self._strict = strict
        self._style = style
        self._known: dict[str, str] = {}
        self.rules: list[str] = []

    def properties(self) -> list[tuple[str, Any, bool]]:
        """Name, schema and whether it must be there, of each argument in order."""
        return self._properties(resolved(self._root, self._root))

    def _properties(self, schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
        listed, required = schema.get("properties"), schema.get("required")
        listed = listed if isinstance(listed, Mapping) else {}
        needed = set(map(str, required)) if isinstance(required, list) else set()
        found = [(str(name), part, name in needed) for name, part in listed.items() if part is not False]
        return found + [(name, {}, True) for name in sorted(needed - listed.keys())]

    @property
    def is_open(self) -> bool:
        """Whether arguments of any name may come, because the schema names none."""
        schema = resolved(self._root, self._root)
        return not self._properties(schema) and schema.get("additionalProperties") not in (False,)

    # ── tags ──

    def raw(self, schema: Any) -> list[RawValue]:
        """A value in a tag, for each kind that it may have."""
        found = []
        for choice in choices(schema, self._root) or [{}]:
            if choice.get("type", "string") != "string":
                found.append(RawValue(False, self._json(choice)))
                continue
            self._check(choice, "string")
            values = _values(choice)
            texts = "" if values is None else " | ".join(_literal(str(value)) for value in values)
            found.append(RawValue(True, texts, _pattern(choice)))
        return found

    # ── values in Python's form and Gemma's ──

    def value(self, schema: Any, level: int = 0) -> str:
        """The name of a rule for a value."""
        key = json.dumps(schema, sort_keys=True, default=str)
        if key in self._known:
            return self._known[key]
        if level > MAX_LEVEL:
            return self._any()
        name = self._known[key] = self._new("value")
        self._rule(name, " | ".join(self._choice(choice, level) for choice in choices(schema, self._root) or [{}]))
        return name

    def _choice(self, schema: Mapping[str, Any], level: int) -> str:
        kind = schema.get("type")
        values = _values(schema)
        if values is not None:
            return " | ".join(self._constant(value) for value in values)
        if kind == "string":
            self._check(schema, "string")
            return self._string(schema)
        if kind == "array":
            self._check(schema, "array")
            return self._array(schema, level)
        if kind == "object":
            self._check(schema, "object")
            return self._object(schema, level)
        if kind == "boolean":
            return f"{self._name('true')} | {self._name('false')}"
        if kind == "null":
            return self._name("null")
        return self._json(schema) if kind in ("number", "integer") else self._any()

    def _string(self, schema: Mapping[str, Any]) -> str:
        if self._style.quote is None:
            return self._json(schema)
        quote, text = self._style.quote, regex(_pattern(schema) or ANY_TEXT)
        if quote.startswith("<["):  # a token, which no text holds
            return f"{quote} {text} {quote}"
        name = self._new("text")
        self.rules.append(f"{name}[lazy]: {text} {quote}\n")
        return f"{quote} {name}"

    def _array(self, schema: Mapping[str, Any], level: int) -> str:
        item = self.value(schema.get("items", {}), level + 1)
        least, most = _count(schema.get("minItems"), 0), _count(schema.get("maxItems"), None)
        if max(least or 0, most or 0) > MAX_ITEMS:
            raise BadRequest(f"{self._param}: at most {MAX_ITEMS} items can be demanded of an array", self._param)
        if most == 0:
            return '"[]"'
        more = (
            f"({_literal(self._style.comma)} {item}){{{max(0, (least or 0) - 1)},{'' if most is None else most - 1}}}"
        )
        full = f'"[" {item} {more} "]"'
        return full if least else f'"[]" | {full}'

    def _object(self, schema: Mapping[str, Any], level: int) -> str:
        listed = self._properties(schema)
        if not listed:
            if schema.get("additionalProperties") is False:
                return '"{}"'
            inner = schema.get("additionalProperties")
            value = self.value(inner if isinstance(inner, Mapping) else {}, level + 1)
            pair = f"{self._key()} {_literal(self._style.colon)} {value}"
            return f'"{{}}" | "{{" {pair} ({_literal(self._style.comma)} {pair})* "}}"'
        pairs = [
            (f"{_literal(self._quoted(name) + self._style.colon)} {self.value(part, level + 1)}", needed)
            for name, part, needed in listed
        ]
        return f'"{{" {self.listed(pairs)} "}}"'

    def listed(self, pairs: Sequence[tuple[str, bool]]) -> str:
        """Pairs in order, some of which may be left out, with commas between those that are there."""
        comma = _literal(self._style.comma)
        first, rest = '""', '""'
        for text, needed in reversed(pairs):
            after, alone = self._new("rest"), self._new("first")
            self._rule(after, f"{comma} {text} {rest}" + ("" if needed else f" | {rest}"))
            self._rule(alone, f"{text} {rest}" + ("" if needed else f" | {first}"))
            first, rest = alone, after
        return first

    def _any(self) -> str:
        """The name of a rule for any value; recursive."""
        if "any" not in self._known:
            name = self._known["any"] = self._new("any")
            comma, colon = _literal(self._style.comma), _literal(self._style.colon)
            pair = f"{self._key()} {colon} {name}"
            self._rule(
                name,
                f"{self._string({'type': 'string'})} | {self._json({'type': 'number'})} | {self._name('true')} | "
                f'{self._name("false")} | {self._name("null")} | "[]" | "[" {name} ({comma} {name})* "]" | '
                f'"{{}}" | "{{" {pair} ({comma} {pair})* "}}"',
            )
        return self._known["any"]

    def _key(self) -> str:
        return r"/[A-Za-z_]\w{0,63}/" if self._style.bare_keys else self._json({"type": "string"})

    def _quoted(self, name: str) -> str:
        return name if self._style.bare_keys else json.dumps(name, ensure_ascii=False)

    def _constant(self, value: Any) -> str:
        """One value as the form writes it."""
        comma, colon = _literal(self._style.comma), _literal(self._style.colon)
        if isinstance(value, str) and self._style.quote is not None:
            return f"{self._style.quote} {_literal(value)} {self._style.quote}"
        if value is None or isinstance(value, bool):
            return self._name(json.dumps(value))
        if isinstance(value, list):
            return f'"[" {f" {comma} ".join(map(self._constant, value))} "]"'
        if isinstance(value, Mapping):
            pairs = [
                f"{_literal(self._quoted(str(key)))} {colon} {self._constant(part)}" for key, part in value.items()
            ]
            return f'"{{" {f" {comma} ".join(pairs)} "}}"'
        return _literal(json.dumps(value, ensure_ascii=False))

    def _name(self, constant: str) -> str:
        return _literal(self._style.names.get(constant, constant))

    # ── both ──

    def _json(self, schema: Mapping[str, Any]) -> str:
        """A value as JSON, with the definitions that it may refer to."""
        root = {key: self._root[key] for key in ("$defs", "definitions") if key in self._root}
        return f"%json {schema_text({**root, **schema}, self._param, strict=self._strict)}"

    def _check(self, schema: Mapping[str, Any], kind: str) -> None:
        if not self._strict:
            return
        if beyond := set(schema) - _KEPT[kind] - _KEPT[""] - _ANNOTATIONS:
            raise BadRequest(
                f"{self._param}: {min(beyond)!r} cannot be kept to in the form in which this model writes calls: leave "
                "it out, or strict",
                self._param,
            )

    def _new(self, kind: str) -> str:
        return f"{self._prefix}_{kind}_{len(self.rules) + len(self._known)}"

    def _rule(self, name: str, right: str) -> None:
        self.rules.append(f"{name}: {right}\n")


ANY_TEXT = "(?s:.*)"


def _pattern(schema: Mapping[str, Any]) -> str | None:
    """What a text must match as a whole; None where it may be any."""
    pattern, most = schema.get("pattern"), _count(schema.get("maxLength"), None)
    if isinstance(pattern, str) and pattern:
        begin = "" if pattern.startswith("^") else ANY_TEXT
        end = "" if pattern.endswith("$") and not pattern.endswith(r"\$") else ANY_TEXT
        return f"{begin}(?:{pattern}){end}"
    least = _count(schema.get("minLength"), 0)
    return f"(?s:.{{{least},{'' if most is None else most}}})" if least or most is not None else None


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values of which it is one; None where it is not said."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) and values else None


def _count(value: Any, default: int | None) -> int | None:
    return min(value, 2**16) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
