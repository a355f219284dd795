"""What a body says its answer must be, in any of the fields that clients use for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest
from octavo.text.grammars.sources import KINDS
from octavo_serve.surfaces.openai.schemas import SamplingBody

_FORMATS = '"text", "json_object", "json_schema" or "structural_tag"'
_OTHERS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
"""Of vLLM's `structured_outputs`, which clients send with a harmless value."""


def structured_outputs(body: SamplingBody) -> StructuredOutputs | None:
    """What the answer must be; None where it is free.

    Raises:
        BadRequest: a field is malformed, or two of them are given.
    """
    found = [
        (name, wanted)
        for name in _READERS
        if name in body.model_fields_set
        and (value := getattr(body, name)) not in (None, "", [])
        and (value != {} or name in _SCHEMAS)
        and (wanted := _READERS[name](value)) is not None
    ]
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise BadRequest(
            f"{names} exclude each other: each says what the answer must be; send one of them", found[1][0]
        )
    return found[0][1] if found else None


def response_format(value: Mapping[str, Any], param: str = "response_format") -> StructuredOutputs | None:
    """Of OpenAI's `response_format`, with vLLM's type "structural_tag", and a schema beside "json_object" as in
    llama.cpp.

    Raises:
        BadRequest.
    """
    kind, named = value.get("type"), value.get("json_schema")
    if named is not None and kind != "json_schema":
        json_schema(named, f"{param}.json_schema")  # of no use there, but no nonsense either
    if kind == "text":
        return None
    if kind == "json_object":
        if isinstance(value.get("schema"), Mapping):
            return StructuredOutputs(json=value["schema"], param=f"{param}.schema")
        return StructuredOutputs(json_object=True, param=param)
    if kind == "json_schema":
        return json_schema(named, f"{param}.json_schema")
    if kind == "structural_tag":
        return StructuredOutputs(structural_tag=dict(value), param=param)
    raise BadRequest(f"{param}.type must be {_FORMATS}, got {kind!r:.80}", f"{param}.type")


def json_schema(value: Any, param: str) -> StructuredOutputs:
    """Of {"name": ..., "schema": ..., "strict": ...}.

    Raises:
        BadRequest.
    """
    if not isinstance(value, Mapping):
        raise BadRequest(f'{param} must be an object such as {{"name": "answer", "schema": {{...}}}}', param)
    if not isinstance(value.get("name"), str | None):
        raise BadRequest(f"{param}.name must be a string", f"{param}.name")
    if not isinstance(value.get("strict"), bool | None):
        raise BadRequest(f"{param}.strict must be true or false", f"{param}.strict")
    schema = value.get("schema")
    if not isinstance(schema, Mapping | bool | str):
        raise BadRequest(f"{param}.schema must be a JSON schema, an object", f"{param}.schema")
    plain = dict(schema) if isinstance(schema, Mapping) else schema
    return StructuredOutputs(json=plain, strict=bool(value.get("strict")), param=f"{param}.schema")


def _of_vllm(value: Mapping[str, Any]) -> StructuredOutputs | None:
    """vLLM's own field: one of the kinds, by its name."""
    name = "structured_outputs"
    for key in value:
        if key in _OTHERS and value[key]:
            raise BadRequest(f"{name}.{key} is not supported: leave it out", f"{name}.{key}")
        if key not in KINDS and key not in _OTHERS:
            raise BadRequest(f"{name} may hold one of {', '.join(KINDS)}; got {key!r:.80}", name)
    given = {key: value[key] for key in KINDS if value.get(key) is not None}
    if not isinstance(given.get("json_object"), bool | None):
        raise BadRequest(f"{name}.json_object must be true or false", f"{name}.json_object")
    if given.get("json_object") is False:
        del given["json_object"]
    if len(given) > 1:
        raise BadRequest(f"{' and '.join(f'{name}.{key}' for key in given)} exclude each other: send one", name)
    return next((StructuredOutputs(**{key: part}, param=f"{name}.{key}") for key, part in given.items()), None)


def _field(kind: str, name: str) -> Callable[[Any], StructuredOutputs]:
    return lambda value: StructuredOutputs(**{kind: value}, param=name)


_READERS: dict[str, Callable[[Any], StructuredOutputs | None]] = {
    "response_format": response_format,
    "structured_outputs": _of_vllm,
    "guided_json": _field("json", "guided_json"),
    "guided_regex": _field("regex", "guided_regex"),
    "guided_choice": _field("choice", "guided_choice"),
    "guided_grammar": _field("grammar", "guided_grammar"),
    "grammar": _field("grammar", "grammar"),
    "json_schema": _field("json", "json_schema"),
}
"""Field -> reads it; the value is neither null nor empty."""
_SCHEMAS = ("guided_json", "json_schema")
"""Fields in which an empty object says something: any JSON."""
