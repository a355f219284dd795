"""Reads objects of several kinds, told apart by one of their fields: a wrong one costs one error, in the words of its
kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any

from pydantic import PlainValidator, ValidationError

from octavo_serve.api.body import Body
from octavo_serve.api.validation import WrongInside, explain

Kinds = Mapping[str, type[Body] | str]
"""Kind -> its schema, or the sentence that refuses it."""


def by_type(value: Mapping[str, Any]) -> object:
    """The kind of most objects: what they say in `type`."""
    return value.get("type")


def one_of(kinds: Kinds, kind_of: Callable[[Mapping[str, Any]], object] = by_type) -> PlainValidator:
    """Makes a field hold an object of one of these kinds."""

    def read(value: object) -> Body:
        if not isinstance(value, dict):
            raise ValueError("must be an object with a type")
        named = kind_of(value)
        kind = kinds.get(named) if isinstance(named, str) else None
        if kind is None:
            known = ", ".join(name for name, known in kinds.items() if not isinstance(known, str))
            raise ValueError(f"must be of one of the kinds {known}; got {named!r:.80}")
        if isinstance(kind, str):
            raise ValueError(kind)
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise WrongInside(*explain(error, kind)) from None

    schemas = dict.fromkeys(kind for kind in kinds.values() if not isinstance(kind, str))
    described: Any = reduce(or_, schemas)
    return PlainValidator(read, json_schema_input_type=described)
