"""Custom tools, whose input is a text: for the model, functions with one parameter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

INPUT = "input"
"""The one parameter of the function."""


def wrong_format(value: Any) -> str | None:
    """What is wrong with a custom tool's `format`, of either API; None if nothing is."""
    if value is None or value == {"type": "text"}:
        return None
    if not isinstance(value, Mapping) or value.get("type") != "grammar":
        return '.format must be {"type": "text"} or {"type": "grammar", ...}'
    grammar = _grammar(value)
    if grammar.get("syntax") not in ("lark", "regex") or not isinstance(grammar.get("definition"), str):
        return '.format must have a syntax, "lark" or "regex", and a definition'
    return None


def as_function(name: str, description: str | None, form: Mapping[str, Any] | None) -> dict[str, Any]:
    """The function that a model calls for a custom tool; a grammar is told to it, too."""
    definition = _grammar(form or {}).get("definition")
    told = f"{INPUT} is a text in this form:\n{definition}" if definition else ""
    parameters = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}
    described = {"description": "\n\n".join(filter(None, [description, told])), "parameters": parameters}
    return {"type": "function", "function": {"name": name, **described}}


def lark_of(form: Mapping[str, Any] | None) -> str:
    """The grammar in Lark that the input must match; "" if there is none."""
    grammar = _grammar(form or {})
    return str(grammar["definition"]) if grammar.get("syntax") == "lark" else ""


def parameters(form: Mapping[str, Any] | None) -> dict[str, Any]:
    """The schema that the function's arguments must fit, as far as a schema can say it."""
    text: dict[str, Any] = {"type": "string"}
    grammar = _grammar(form or {})
    if grammar.get("syntax") == "regex":
        text["pattern"] = f"^(?:{grammar['definition']})$"
    return {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}


def arguments_of(given: Any) -> str:
    """The arguments of a call, of the text that a client gives back; `input_of` undoes it."""
    return json.dumps({INPUT: given}, ensure_ascii=False)


def input_of(arguments: str) -> str:
    """The text in the arguments of a call; they themselves where a model wrote something else."""
    try:
        given = json.loads(arguments).get(INPUT)
    except (ValueError, AttributeError, RecursionError):
        return arguments
    return given if isinstance(given, str) else arguments


def _grammar(form: Mapping[str, Any]) -> Mapping[str, Any]:
    """Syntax and definition: in `grammar` as chats have it, or beside the type as responses have it."""
    inner = form.get("grammar", form) if form.get("type") == "grammar" else {}
    return inner if isinstance(inner, Mapping) else {}
