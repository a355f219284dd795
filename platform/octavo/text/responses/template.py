"""Response templates: how a family of models writes reasoning and calls, as data.

The format is Hugging Face's `response_template` (transformers 5.13 and later: utils/chat_parsing): a field of a message
has what opens it, what closes it, and how to read what is between. The same record says what a grammar of a call needs:
an opening with the name's place in it, the form of the arguments, a closing.

Beyond that format, for what models need that it does not have: the content `pythonic`, a group `kind` of xml-inline's
`tag_pattern` (whether a value is a text: "true", "string", or JSON), `call_ids` (see `ResponseTemplate`), and `written`
(by a field's name, how a model writes it where patterns allow several ways; see `octavo.text.grammars`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from octavo.text.responses.patterns import Node, PatternError, literals, parse

Role = Literal["content", "reasoning", "calls"]

_ROLES: dict[str, Role] = {
    "content": "content",
    "thinking": "reasoning",
    "reasoning": "reasoning",
    "reasoning_content": "reasoning",
    "tool_calls": "calls",
}
_KEYS = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern", "call_ids", "written"}
_FIELD_KEYS = {
    "open", "open_pattern", "close", "close_pattern", "content", "content_args", "repeats", "optional", "transform",
    "transform_each",
}  # fmt: skip
_CALLS = ("json", "xml-inline", "pythonic")
MAX_FIELDS = 16


class TemplateError(ValueError):
    """A response template that is wrong, or holds what is not done here; the message says what."""


@dataclass(frozen=True, slots=True)
class Field:
    """One kind of region of what a model says.

    Attributes:
        opening: None is what is outside of all others.
        closing: None where only the end of the message closes it.
        content: how to read it: "text", or one of `json`, `xml-inline` and `pythonic` where it holds calls.
        transform: what a call is made of, and of each element of its value where `each`.
        written: how a model writes it, for grammars.
    """

    name: str
    role: Role
    opening: Node | None
    closing: Node | None
    content: str
    args: Mapping[str, Any]
    transform: Any
    each: bool
    written: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """How a family of models writes a message.

    Attributes:
        anchor: what an assistant's turn begins with in a prompt.
        texts: all that the template spells, where tokens are looked for.
        call_ids: "short" where the family's chat template takes calls with ids of nine letters and digits only.
    """

    fields: tuple[Field, ...]
    anchor: Node | None
    texts: tuple[str, ...]
    call_ids: Literal["short", ""] = ""


def load_template(spec: Any) -> ResponseTemplate:
    """A template from its JSON.

    Raises:
        TemplateError.
    """
    if not isinstance(spec, Mapping):
        raise TemplateError("a response template must be an object")
    if unknown := set(spec) - _KEYS:
        raise TemplateError(f"{min(map(str, unknown))!r} is not known in a response template")
    if spec.get("version", 1) != 1:
        raise TemplateError(f"response templates of version {spec['version']!r:.20} are not known")
    fields = spec.get("fields")
    if not isinstance(fields, Mapping) or not 0 < len(fields) <= MAX_FIELDS:
        raise TemplateError(f"fields must hold 1 to {MAX_FIELDS} fields")
    written = spec.get("written", {})
    if not isinstance(written, Mapping) or not all(isinstance(form, Mapping) for form in written.values()):
        raise TemplateError("written must be an object of objects")
    found = tuple(_field(str(name), field, written.get(name, {})) for name, field in fields.items())
    try:
        anchor = _delimiter(spec, "start_anchor")
    except PatternError as error:
        raise TemplateError(f"start_anchor: {error}") from error
    if sum(field.opening is None for field in found) > 1:
        raise TemplateError("only one field may have no opening")
    return ResponseTemplate(
        found,
        anchor,
        tuple(re.sub(r"\\(\W)", r"\1", text) for text in _strings([spec.get("start_anchor"), dict(fields)])),
        "short" if spec.get("call_ids") == "short" else "",
    )


def _field(name: str, spec: Any, written: Mapping[str, Any]) -> Field:
    if not isinstance(spec, Mapping):
        raise TemplateError(f"{name} must be an object")
    if unknown := set(spec) - _FIELD_KEYS:
        raise TemplateError(f"{name}: {min(map(str, unknown))!r} is not known")
    role = _ROLES.get(name)
    if role is None:
        raise TemplateError(f"{name} is no field of a message here; known are {', '.join(_ROLES)}")
    content, args = spec.get("content", "text"), spec.get("content_args", {})
    if not isinstance(args, Mapping):
        raise TemplateError(f"{name}: content_args must be an object")
    if content not in (_CALLS if role == "calls" else ("text",)):
        raise TemplateError(f"{name}: content {content!r:.40} is not done here")
    if role == "calls" and "open" not in spec and "open_pattern" not in spec:
        raise TemplateError(f"{name}: calls need an opening")
    try:
        opening, closing = _delimiter(spec, "open"), _delimiter(spec, "close")
    except PatternError as error:
        raise TemplateError(f"{name}: {error}") from error
    return Field(
        name,
        role,
        opening,
        closing,
        content,
        args,
        spec.get("transform"),
        bool(spec.get("transform_each", False)),
        written,
    )


def _delimiter(spec: Mapping[str, Any], key: str) -> Node | None:
    exact, pattern = spec.get(key), spec.get(f"{key}_pattern")
    if exact is not None and pattern is not None:
        raise PatternError(f"{key} and {key}_pattern exclude each other")
    if pattern is not None:
        if not isinstance(pattern, str):
            raise PatternError(f"{key}_pattern must be a text")
        return parse(pattern)
    if exact is None or exact == "eos" or exact == ["eos"]:
        return None
    texts = [exact] if isinstance(exact, str) else exact
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise PatternError(f"{key} must be a text, or a list of texts, none of them empty")
    return literals(texts)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
