"""Tools of /v1/responses as chat templates read them, and the names by which answers call them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import BadRequest
from octavo_serve.api.bounds import MAX_TOOL_NAME, MAX_TOOLS
from octavo_serve.api.custom_tools import as_function, wrong_format

_NAME = re.compile(rf"[a-zA-Z0-9_-]{{1,{MAX_TOOL_NAME}}}")
LEFT_OUT = frozenset({"web_search", "web_search_2025_08_26", "web_search_preview", "image_generation", "tool_search"})
"""Tools that agents send to whatever server: it would have to run them, and cannot. The model is not told of them, and
the answer's `tools` does not name them."""
_JOINT = "__"


@dataclass(frozen=True, slots=True)
class Known:
    """A tool that may be called.

    Attributes:
        name, namespace: the client's; "" for no namespace.
        custom: its input is a text.
    """

    name: str
    namespace: str = ""
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request.

    Attributes:
        chat, custom, fields: their definitions, the formats of the custom ones, and where each is in the request, as a
            `Chat` takes them.
        known: by the names that the model knows.
        shown: as the answer gives them back.
    """

    chat: list[dict[str, Any]]
    custom: dict[str, Mapping[str, Any] | None]
    fields: dict[str, str]
    known: Mapping[str, Known]
    shown: list[dict[str, Any]]

    def names(self, name: str, namespace: str = "") -> list[str]:
        """The names by which the model knows a tool, or all tools of a namespace."""
        return [
            full
            for full, one in self.known.items()
            if (one.name == name and namespace in ("", one.namespace)) or (one.namespace == name and not namespace)
        ]


def checked_tools(value: object) -> object:
    """Check the types of tools; raises a ValueError for pydantic."""
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise ValueError(f"tools must be a list of at most {MAX_TOOLS} tool definitions")
    for position, tool in enumerate(value):
        if wrong := _wrong(tool):
            raise ValueError(f"tools[{position}]{wrong}")
    return value


def _wrong(tool: object, *, inner: bool = False) -> str | None:
    """What is wrong with a tool; None if nothing is."""
    if not isinstance(tool, dict):
        return ' must be an object such as {"type": "function", "name": "...", "parameters": {...}}'
    kind = tool.get("type")
    if kind in LEFT_OUT and not inner:
        return None
    if kind not in ("function", "custom", *(() if inner else ("namespace",))):
        return f".type {str(kind)[:80]!r} is not supported: only functions and custom tools can be called here"
    name = tool.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f".name must be 1 to {MAX_TOOL_NAME} letters, digits, underscores or dashes"
    for key, wanted, article in _KEYS:
        if not isinstance(tool.get(key), (wanted, type(None))):
            return f".{key} must be {article}"
    if kind == "custom":
        return wrong_format(tool.get("format"))
    return _wrong_namespace(tool) if kind == "namespace" else None


_KEYS = (
    ("description", str, "a string"),
    ("parameters", dict, "an object, a JSON schema"),
    ("strict", bool, "true or false"),
)


def _wrong_namespace(tool: Mapping[str, Any]) -> str | None:
    tools = tool.get("tools")
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        return f".tools must be a list of at most {MAX_TOOLS} tools"
    return next((f".tools[{i}]{wrong}" for i, one in enumerate(tools) if (wrong := _wrong(one, inner=True))), None)


def tools_of(given: Sequence[Mapping[str, Any]]) -> Tools:
    """The tools of a body.

    Raises:
        BadRequest: two have one name, none is left, or a namespace makes a name too long.
    """
    found = Tools([], {}, {}, known := {}, [])
    for place, full, one, tool in _flat(given):
        if full in known:
            raise BadRequest(f"tools holds two tools that are called {full!r}: give each its own name", "tools")
        if len(full) > MAX_TOOL_NAME:
            raise BadRequest(f"the name {full!r} of a namespace's tool is longer than {MAX_TOOL_NAME}", "tools")
        known[full] = one
        found.chat.append(_in_chat(full, tool))
        found.fields[full] = f"{place}.{'format' if one.custom else 'parameters'}"
        if one.custom:
            found.custom[full] = tool.get("format")
    if given and not known:
        kinds = ", ".join(sorted({str(tool["type"]) for tool in given}))
        raise BadRequest(f"tools holds nothing that can be called here ({kinds}): leave it out", "tools")
    found.shown.extend(_shown(tool) for tool in given if tool["type"] not in LEFT_OUT)
    return found


def full_name(name: str, namespace: str) -> str:
    """The name by which the model knows a tool."""
    return f"{namespace.removesuffix(_JOINT)}{_JOINT}{name}" if namespace else name


def _flat(given: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Known, Mapping[str, Any]]]:
    """Each tool with its place in the body, and the name by which the model knows it."""
    for number, tool in enumerate(given):
        name, place = str(tool["name"]) if tool["type"] not in LEFT_OUT else "", f"tools.{number}"
        if tool["type"] == "namespace":
            for inner, one in enumerate(tool["tools"]):
                known = Known(str(one["name"]), name, one["type"] == "custom")
                yield f"{place}.tools.{inner}", full_name(known.name, name), known, one
        elif tool["type"] not in LEFT_OUT:
            yield place, name, Known(name, custom=tool["type"] == "custom"), tool


def _in_chat(name: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool["type"] == "custom":
        return as_function(name, tool.get("description"), tool.get("format"))
    kept = {key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": {"name": name, **kept}}


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as SDKs type it in answers: a function's schema and strictness are there, null or not."""
    if tool["type"] != "function":
        return dict(tool)
    return {"description": None, "parameters": None, "strict": None} | dict(tool)


# ── the choice ──


@dataclass(frozen=True, slots=True)
class Choice:
    """What may, or must, be called; `one_call` and what follows are as in `Chat`."""

    tools: bool = True
    one_call: bool = False
    must_call: bool = False
    callable_tools: frozenset[str] | None = None


def choice_of(value: str | Mapping[str, Any] | None, tools: Tools) -> Choice:
    """What `tool_choice` asks for.

    Raises:
        BadRequest: it names no tool of the request, or is of an unknown kind.
    """
    if value is None or value == "auto":
        return Choice()
    if value == "none":
        return Choice(tools=False)
    if value == "required":
        _check(bool(tools.known), 'tool_choice "required" needs tools that can be called')
        return Choice(must_call=True)
    if isinstance(value, Mapping):
        kind = value.get("type")
        if kind == "allowed_tools":
            return _allowed(value, tools)
        if kind in ("function", "custom"):
            return Choice(one_call=True, must_call=True, callable_tools=_named(value, tools))
    raise BadRequest(
        'tool_choice must be "none", "auto", "required", or an object of type function, custom or allowed_tools',
        "tool_choice",
    )


def _allowed(value: Mapping[str, Any], tools: Tools) -> Choice:
    mode, allowed = value.get("mode"), value.get("tools")
    _check(mode in ("auto", "required"), 'tool_choice.mode must be "auto" or "required"')
    entries = allowed if isinstance(allowed, list) else []
    _check(
        bool(entries) and len(entries) <= MAX_TOOLS and all(isinstance(entry, Mapping) for entry in entries),
        f"tool_choice.tools must be a list of 1 to {MAX_TOOLS} objects that name tools",
    )
    kept = [entry for entry in entries if entry.get("type") not in LEFT_OUT]
    names = frozenset(name for entry in kept for name in _named(entry, tools))
    return Choice(tools=bool(names), must_call=mode == "required", callable_tools=names)


def _named(value: Mapping[str, Any], tools: Tools) -> frozenset[str]:
    name, space = value.get("name"), value.get("namespace") or ""
    found = tools.names(name, space) if isinstance(name, str) and isinstance(space, str) else []
    _check(bool(found), f"tool_choice names {str(name)[:80]!r}, which is none of the tools")
    return frozenset(found)


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise BadRequest(sentence, "tool_choice")
