"""Which tools of a chat may be called, and whether one must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import BadRequest
from octavo_serve.api.bounds import MAX_TOOLS

_FORMS = '"auto", "none", "required", {"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", ...}'


@dataclass(frozen=True, slots=True)
class Choice:
    """What `tool_choice` asks for.

    Attributes:
        none: no tool is shown to the model.
        named: exactly one call.
        must_call, callable_tools: as in `Chat`.
    """

    none: bool = False
    named: bool = False
    must_call: bool = False
    callable_tools: frozenset[str] | None = None


def choice_of(value: str | Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]]) -> Choice:
    """What a `tool_choice` asks for.

    Raises:
        BadRequest: it is malformed, names a tool that is not there, or demands a call without tools.
    """
    if value in (None, "auto", {}, ""):
        return Choice()
    if value == "none":
        return Choice(none=True)
    if not tools:
        raise BadRequest("tool_choice needs tools: send some, or leave it out", "tool_choice")
    if value == "required":
        return Choice(must_call=True)
    if not isinstance(value, Mapping):
        raise BadRequest(f"tool_choice must be {_FORMS}, got {value!r:.80}", "tool_choice")
    if value.get("type") == "allowed_tools":
        return _allowed(value.get("allowed_tools", value), tools)
    return Choice(named=True, must_call=True, callable_tools=frozenset([_known(value, tools)]))


def _allowed(value: Any, tools: Sequence[Mapping[str, Any]]) -> Choice:
    """Of {"mode": "auto" or "required", "tools": [...]}."""
    listed, mode = (value.get("tools"), value.get("mode", "auto")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_TOOLS or mode not in ("auto", "required"):
        raise BadRequest(
            'tool_choice.allowed_tools must hold a mode, "auto" or "required", and tools, some of those sent',
            "tool_choice",
        )
    names = frozenset(_known(tool, tools) for tool in listed)
    return Choice(must_call=mode == "required", callable_tools=names)


def _known(tool: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """The name of a tool that is there, in {"type": "function", "function": {"name": ...}}."""
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    inner = tool.get(kind) if isinstance(tool, Mapping) and kind in ("function", "custom") else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise BadRequest(f"tool_choice must be {_FORMS}", "tool_choice")
    if all(one[one["type"]]["name"] != name for one in tools):
        raise BadRequest(f"tool_choice names {name!r:.80}, which is none of the tools", "tool_choice")
    return name


# ── custom tools ──


def custom_tools(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any] | None]:
    """Names of the custom ones -> their formats."""
    return {tool["custom"]["name"]: tool["custom"].get("format") for tool in tools if tool["type"] == "custom"}
