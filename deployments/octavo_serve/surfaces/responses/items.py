"""Items of /v1/responses: what they must be, their usual form, and the chat that they make.

items ── checked_items (while the body is read) ──> usual (ids, texts as parts) ──> messages_of ──> the chat's messages

What an answer's `output` holds is in the usual form already.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from octavo.errors import BadRequest
from octavo_serve.api.bounds import MAX_MESSAGES, MAX_NAME, MAX_PARTS
from octavo_serve.api.chats import Message
from octavo_serve.api.custom_tools import arguments_of
from octavo_serve.surfaces.responses.tools import full_name

Item = Mapping[str, Any]

ROLES = ("user", "system", "developer", "assistant")
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Type of a message's part -> the field with its text."""
_PREFIXES = {
    "message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco",
    "custom_tool_call": "ctc", "custom_tool_call_output": "ctco",
}  # fmt: skip
"""Type of an item -> what its id begins with."""
_STRINGS = {
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id",),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id",),
}
"""Type of an item -> its fields that are texts."""


# ── checks ──


def checked_items(value: object) -> object:
    """Check the types of an input; raises a ValueError for pydantic."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not len(value) <= MAX_MESSAGES:
        raise ValueError(f"must be a string or a list of at most {MAX_MESSAGES} items")
    for position, item in enumerate(value):
        if wrong := _wrong(item):
            raise ValueError(f"input[{position}]{wrong}")
    return value


def _wrong(item: object) -> str | None:
    """What is wrong with an item; None if nothing is."""
    if not isinstance(item, dict):
        return ' must be an object such as {"role": "user", "content": "..."}'
    kind = kind_of(item)
    if not isinstance(item.get("id"), (str, type(None))) or len(item.get("id") or "") > MAX_NAME:
        return f".id must be a string of at most {MAX_NAME} characters"
    if kind == "item_reference":
        return None if item.get("id") else ".id must name an item"
    if kind == "message":
        return _wrong_message(item)
    if kind == "reasoning":
        return _wrong_reasoning(item)
    if kind not in _STRINGS:
        return f".type {str(kind)[:80]!r} is not supported: leave the item out"
    for name in _STRINGS[kind]:
        if not isinstance(item.get(name), str):
            return f".{name} must be a string"
    if not isinstance(item.get("namespace"), (str, type(None))):
        return ".namespace must be a string"
    return _wrong_content(item.get("output"), "output") if kind.endswith("_output") else None


def kind_of(item: Item) -> Any:
    """An item's type; SDKs leave out that of a message, and may leave out that of a reference."""
    kind = item.get("type")
    if kind is None:
        return "message" if "role" in item else "item_reference" if "id" in item else None
    return kind


def _wrong_message(item: Item) -> str | None:
    if item.get("role") not in ROLES:
        return f".role must be one of {', '.join(ROLES)}"
    return _wrong_content(item.get("content"), "content")


def _wrong_content(content: object, name: str) -> str | None:
    if isinstance(content, str):
        return None
    if not isinstance(content, list) or len(content) > MAX_PARTS:
        return f".{name} must be a string or a list of at most {MAX_PARTS} parts"
    for position, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        field = _TEXTS.get(kind) if isinstance(kind, str) else None
        if field is None:
            return f".{name}[{position}] is of type {str(kind)[:80]!r}; the models here read text only"
        if not isinstance(part.get(field), str):
            return f".{name}[{position}].{field} must be a string"
    return None


def _wrong_reasoning(item: Item) -> str | None:
    if not isinstance(item.get("encrypted_content"), (str, type(None))):
        return ".encrypted_content must be a string"
    for name in ("summary", "content"):
        parts = item.get(name)
        texts = parts is None or isinstance(parts, list)
        if not texts or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts or ()):
            return f".{name} must be a list of parts that have a text"
        if len(parts or ()) > MAX_PARTS:
            return f".{name} must have at most {MAX_PARTS} parts"
    return None


# ── the usual form ──


def usual(given: str | Iterable[Item]) -> list[Item]:
    """The items of a checked input in the form in which they are stored and listed."""
    items: Iterable[Item] = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return [_usual(item) for item in items]


def _usual(item: Item) -> Item:
    kind = kind_of(item)
    found = {"id": item.get("id") or new_id(kind), "type": kind, "status": item.get("status") or "completed"}
    if kind == "message":
        role = item["role"]
        phase = {"phase": item["phase"]} if isinstance(item.get("phase"), str) else {}
        return found | {"role": role, "content": _parts(item["content"], role)} | phase
    if kind == "reasoning":
        sealed = {"encrypted_content": item["encrypted_content"]} if item.get("encrypted_content") else {}
        content = {"content": _thoughts(item["content"], "reasoning_text")} if item.get("content") else {}
        return found | {"summary": _thoughts(item.get("summary") or (), "summary_text")} | content | sealed
    said = {name: item[name] for name in (*_STRINGS[kind], "namespace") if item.get(name) is not None}
    output = item.get("output")
    if output is not None:
        said["output"] = output if isinstance(output, str) else _parts(output, "tool")
    return found | said


def _thoughts(parts: Iterable[Item], kind: str) -> list[dict[str, Any]]:
    return [{"type": kind, "text": part["text"]} for part in parts]


def _parts(content: Any, role: str) -> list[dict[str, Any]]:
    given = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [_part(part, role) for part in given]


def _part(part: Item, role: str) -> dict[str, Any]:
    if role != "assistant":
        return {"type": "input_text", "text": part[_TEXTS[part["type"]]]}
    if part["type"] == "refusal":
        return {"type": "refusal", "refusal": part["refusal"]}
    return {"type": "output_text", "text": part["text"], "annotations": []}


def new_id(kind: str) -> str:
    """An id for an item of this type."""
    return f"{_PREFIXES[kind]}_{secrets.token_hex(12)}"


# ── the chat ──


def messages_of(instructions: str | None, items: Sequence[Item], unsealed: Callable[[str], str]) -> list[Message]:
    """The messages of a chat that says what the items say.

    Reasoning, a text and calls that follow each other are one message of the assistant. Instructions, and what comes
    first of the roles system and developer, are one message: many templates take no second one.

    Args:
        items: in the usual form.
        unsealed: the reasoning of an `encrypted_content`.

    Raises:
        BadRequest: there is none, or as `unsealed`.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    open_turn: dict[str, Any] = {}
    for item in items:
        said = _said(item, unsealed)
        if said == {"reasoning_content": ""}:  # it was told without its text
            continue
        if said is None:
            open_turn = {}
            messages.append(_message(item))
        elif open_turn and _fits(said, open_turn):
            _add(open_turn, said)
        else:
            open_turn = {"role": "assistant", **said}
            messages.append(open_turn)
    if not messages:
        raise BadRequest("input must not be empty", "input")
    return [Message(**message) for message in _one_system(messages)]


def _message(item: Item) -> dict[str, Any]:
    if item["type"] == "message":
        return {"role": item["role"], "content": _content(item["content"])}
    return {"role": "tool", "tool_call_id": item["call_id"], "content": _content(item["output"])}


def _content(content: Any) -> Any:
    """Of one part its text: templates that look into parts take a text for one part, too."""
    if isinstance(content, list) and len(content) == 1:
        return content[0][_TEXTS[content[0]["type"]]]
    return content


def _said(item: Item, unsealed: Callable[[str], str]) -> dict[str, Any] | None:
    """What an item adds to a message of the assistant; None if it is of another role."""
    kind = item["type"]
    if kind == "message" and item["role"] == "assistant":
        return {"content": _content(item["content"])}
    if kind == "reasoning":
        sealed = item.get("encrypted_content")
        parts = item.get("content") or item["summary"]
        return {"reasoning_content": unsealed(sealed) if sealed else "\n".join(part["text"] for part in parts)}
    if kind in ("function_call", "custom_tool_call"):
        arguments = item["arguments"] if kind == "function_call" else arguments_of(item["input"])
        function = {"name": full_name(item["name"], item.get("namespace") or ""), "arguments": arguments}
        return {"tool_calls": [{"id": item["call_id"], "type": "function", "function": function}]}
    return None


def _fits(said: Mapping[str, Any], turn: Mapping[str, Any]) -> bool:
    """Whether the message may go on with this: reasoning comes before a text, a text before calls."""
    if "tool_calls" in said:
        return True
    return "tool_calls" not in turn and "content" not in turn and ("content" in said or "reasoning_content" not in turn)


def _add(turn: dict[str, Any], said: dict[str, Any]) -> None:
    for name, value in said.items():
        turn[name] = [*turn[name], *value] if name in turn else value


def _one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    count = next((i for i, message in enumerate(messages) if message["role"] not in _LEADING), len(messages))
    if count < 2:
        return messages
    text = "\n\n".join(_text(message["content"]) for message in messages[:count])
    return [{"role": messages[0]["role"], "content": text}, *messages[count:]]


_LEADING = ("system", "developer")


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part[_TEXTS[part["type"]]] for part in content)
