"""Reads the body of a call: JSON, a dialect of it, tags or Python's form; values get the types of the tool's schema."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.text.responses.patterns import Finder, Pattern, literals, parse, plain, split_at_group
from octavo.text.responses.template import Field, TemplateError

MAX_PYTHON = 2**16
"""Characters of calls in Python's form, which is parsed as a whole on an event loop."""
MAX_DEPTH = 100
"""Of nested values in a dialect of JSON."""

Schemas = Mapping[str, Mapping[str, Any]]
"""The tools' names -> their parameters' names -> JSON schemas."""


@dataclass(frozen=True, slots=True)
class Call:
    """A function to be called.

    Attributes:
        arguments: a JSON object, as a text.
        id: where the model gives one.
    """

    name: str
    arguments: str
    id: str = ""


_WRONG = (
    ValueError, TypeError, LookupError, AttributeError, SyntaxError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip
"""What comes of reading whatever a model wrote."""


class CallBody:
    """How the bodies of one field are read.

    Args:
        field: of calls.
        closing: what closes it.
        names: mark -> the text of the token that it stands for.

    Attributes:
        quotes: what opens a string in it -> what closes it, and whether a backslash hides that.
        end: finds what closes the body, or opens a string.
        streams: "body" where it is the arguments themselves, "member" where it is an object that holds them last.
    """

    def __init__(self, field: Field, closing: Pattern | None, names: Mapping[str, str]) -> None:
        self._field = field
        self._names = names
        self._marks = {text: mark for mark, text in names.items()}
        self.quotes = {self._marked(begin): (self._marked(end), hides) for begin, end, hides in _quotes(field)}
        patterns = [(quote, Pattern(literals([quote]), names)) for quote in self.quotes]
        self.end = Finder([*patterns, *([("", closing)] if closing else [])])
        self.ends = {end: Finder([("", Pattern(literals([end]), names))]) for end, _ in self.quotes.values()}
        self.streams = _streamed(field)
        self._read = {"json": self._json, "xml-inline": self._tags, "pythonic": self._python}[field.content]
        if field.content == "xml-inline":
            self._head, self._tail = _tag(field, names)

    def calls(self, body: str, captures: Mapping[str, str], schemas: Schemas) -> list[Call] | None:
        """The calls in a body; None where it is malformed."""
        try:
            value = self._read(body, schemas.get(captures.get("name", ""), {}))
            if self._field.content == "pythonic":
                made = value
            elif self._field.each:
                made = [_filled(self._field.transform, {**captures, **element}) for element in value]
            else:
                made = [_filled(self._field.transform, {**captures, "content": value})]
            return [_call(part) for part in made] or None
        except _WRONG:
            return None

    def _marked(self, text: str) -> str:
        return self._marks.get(text, text)

    # ── JSON ──

    def _json(self, body: str, schema: Mapping[str, Any]) -> Any:
        if self._field.args.get("string_delims") or self._field.args.get("unquoted_keys"):
            return _Dialect(body, {begin: end for begin, (end, _) in self.quotes.items()}, self._names).whole()
        return load_json(plain(body, self._names))

    # ── tags ──

    def _tags(self, body: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        pos = 0
        while isinstance(head := self._head.find(body, pos, final=True), tuple):
            tail = self._tail.find(body, head[1].end, final=True)
            end, pos = (tail[1].start, tail[1].end) if isinstance(tail, tuple) else (len(body), len(body))
            groups, text = head[1].groups, plain(body[head[1].end : end], self._names)
            key = _unescaped(groups["key"]) if self._field.args.get("escaped_keys") else groups["key"]
            found[key] = self._typed(text, groups.get("kind"), schema.get(key))
            pos = max(pos, end, head[1].end)
        return found

    def _typed(self, text: str, kind: str | None, schema: Any) -> Any:
        if kind is not None:
            return text if kind in ("true", "string") else _json_or_text(text)
        types = schema_types(schema)
        if types:
            return typed(text, types)
        return _json_or_text(text) if self._field.args.get("value_parser") else text

    # ── Python ──

    def _python(self, body: str, schema: Mapping[str, Any]) -> list[dict[str, Any]]:
        body = plain(body, self._names).strip()
        if len(body) > MAX_PYTHON:
            raise ValueError("too long")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash that hides nothing is the model's affair
            tree = ast.parse(body, mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        return [_python_call(call) for call in calls]


def load_json(text: str) -> Any:
    """JSON as a model writes it: strings may hold line breaks as they are.

    Raises:
        ValueError: it is none.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, strict=False, parse_constant=_refuse)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _json_or_text(text: str) -> Any:
    try:
        return load_json(text)
    except (ValueError, RecursionError):
        return text


_STRINGS = json.JSONDecoder(strict=False)


class _Dialect:
    """JSON with strings in other quotes, and keys without any."""

    def __init__(self, text: str, quotes: Mapping[str, str], names: Mapping[str, str]) -> None:
        self._text = text
        self._quotes = quotes
        self._names = names
        self._pos = 0

    def whole(self) -> Any:
        value = self._value(0)
        if self._peek():
            raise ValueError("more than one value")
        return value

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        char = self._peek()
        if char == "{":
            return dict(self._items("}", depth))
        if char == "[":
            return [value for _, value in self._items("]", depth)]
        if (text := self._string()) is not None:
            return text
        begin = self._pos
        while self._pos < len(self._text) and self._text[self._pos] not in ",]} \n\t\r":
            self._pos += 1
        return load_json(self._text[begin : self._pos])

    def _items(self, end: str, depth: int) -> Iterator[tuple[str, Any]]:
        self._pos += 1
        while self._peek() != end:
            yield self._key() if end == "}" else "", self._value(depth + 1)
            if self._peek() == ",":
                self._pos += 1
            elif self._peek() != end:
                raise ValueError("a comma is missing")
        self._pos += 1

    def _key(self) -> str:
        self._peek()
        key = self._string()
        colon = self._text.index(":", self._pos)
        bare, self._pos = self._text[self._pos : colon], colon + 1
        if key is None and any(char in bare for char in "{}[],"):
            raise ValueError("a key is missing")
        return plain(bare, self._names).strip() if key is None else key

    def _string(self) -> str | None:
        for begin, end in self._quotes.items():
            if not self._text.startswith(begin, self._pos):
                continue
            if begin == '"':
                value, self._pos = _STRINGS.raw_decode(self._text, self._pos)
                return plain(str(value), self._names)
            inside = self._pos + len(begin)
            close = self._text.index(end, inside)
            self._pos = close + len(end)
            return plain(self._text[inside:close], self._names)
        return None

    def _peek(self) -> str:
        while self._pos < len(self._text) and self._text[self._pos] in " \n\t\r":
            self._pos += 1
        return self._text[self._pos : self._pos + 1]


def _quotes(field: Field) -> Iterator[tuple[str, str, bool]]:
    if field.content == "json":
        yield '"', '"', True
        for begin, end in field.args.get("string_delims") or []:
            yield begin, end, False
    elif field.content == "pythonic":
        yield '"', '"', True
        yield "'", "'", True


# ── tags ──


def _tag(field: Field, names: Mapping[str, str]) -> tuple[Finder, Finder]:
    """What comes before a value in a tag, and what after it."""
    source = field.args.get("tag_pattern")
    if not isinstance(source, str):
        raise TemplateError(f"{field.name}: xml-inline needs a tag_pattern")
    head, tail = split_at_group(parse(source), "value")
    return Finder([("", Pattern(head, names))]), Finder([("", Pattern(tail, names))])


def schema_types(schema: Any) -> list[str]:
    """The types that a JSON schema allows; empty where it does not say."""
    if not isinstance(schema, Mapping):
        return []
    declared = schema.get("type")
    found = [declared] if isinstance(declared, str) else [kind for kind in _listed(declared) if isinstance(kind, str)]
    for choice in [*_listed(schema.get("anyOf")), *_listed(schema.get("oneOf"))]:
        found += [kind for kind in schema_types(choice) if kind not in found]
    return found


def _listed(value: Any) -> list[Any]:
    return value[:64] if isinstance(value, list) else []


_PYTHON = {"True": True, "False": False, "None": None}


def typed(text: str, types: list[str]) -> Any:
    """The value a text stands for, by the first type that it fits; itself where it fits none."""
    for kind in sorted(types, key=lambda kind: kind == "string"):
        if kind == "string":
            return text
        bare = text.strip()
        value = _PYTHON[bare] if bare in _PYTHON else _json_or_text(bare)
        if kind == "boolean" and isinstance(value, str) and bare.lower() in ("true", "false"):
            return bare.lower() == "true"
        if kind == "integer" and isinstance(value, float) and value.is_integer():
            return value
        if _is(value, kind):
            return value
    return text


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    kinds: dict[str, tuple[type, ...]] = {
        "integer": (int,), "number": (int, float), "object": (dict,), "array": (list,), "null": (type(None),),
    }  # fmt: skip
    return isinstance(value, kinds.get(kind, ()))


def _unescaped(text: str) -> str:
    return text.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


# ── Python's form ──


def _python_call(node: ast.expr) -> dict[str, Any]:
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("not a call with keywords")
    return {
        "name": ast.unparse(node.func),
        "arguments": {keyword.arg: _python_value(keyword.value) for keyword in node.keywords if keyword.arg},
    }


def _python_value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_python_value(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_python_value(key): _python_value(value) for key, value in pairs if key is not None}
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | None) or value != value or value in (float("inf"), -float("inf")):
        raise ValueError("not a JSON value")
    return value


# ── what a call is made of ──


def _filled(transform: Any, scope: Mapping[str, Any]) -> Any:
    """A transform with its placeholders replaced: each is a whole string, `{name}` or a path `{content.name}`."""
    if transform is None:
        return scope["content"]
    if isinstance(transform, Mapping):
        return {key: _filled(part, scope) for key, part in transform.items()}
    if isinstance(transform, list):
        return [_filled(part, scope) for part in transform]
    if isinstance(transform, str) and transform.startswith("{") and transform.endswith("}"):
        value: Any = scope
        for key in transform[1:-1].split("."):
            value = value[key]
        return value
    return transform


def _call(made: Any) -> Call:
    function = made.get("function", made)
    name = function["name"]
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = load_json(arguments) if arguments.strip() else {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict | None):
        raise ValueError("not a call")
    given = made.get("id")
    return Call(name, json.dumps(arguments or {}, ensure_ascii=False), given if isinstance(given, str) else "")


def _streamed(field: Field) -> str:
    """Where a call's arguments stand in a JSON body; "" where they are known at its end only."""
    transform = field.transform
    if field.content != "json" or field.args or field.each or not isinstance(transform, Mapping):
        return ""
    function = transform.get("function")
    if function == "{content}":
        return "member"
    return "body" if function == {"name": "{name}", "arguments": "{content}"} else ""
