"""One sentence for what pydantic found wrong."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from octavo_serve.api.validation import explain, valid_keys


def positive(value: Any) -> Any:
    if value == 0:
        raise ValueError("must be more than 0")
    if value == 1:
        raise ValueError("one is a lonely number")
    return value


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "blue"] = "red"
    api_keys: list[int] = Field(default_factory=list)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    size: int
    either: str | list[int] | None = None
    names: Annotated[list[str], Field(max_length=2, min_length=1)] = Field(default_factory=lambda: ["a"])
    inner: Inner = Field(default_factory=Inner)
    inners: list[Inner] = Field(default_factory=list)
    checked: Annotated[int, BeforeValidator(positive)] = 2


TABLE: list[tuple[Any, str, str | None]] = [
    ({}, "field 'size' is required", "size"),
    ({"size": "a"}, "size must be a valid integer, got 'a'", "size"),
    ({"size": 1, "sise": 2}, "unknown field 'sise': did you mean 'size'?", "sise"),
    ({"size": 1, "inner": {"color": "red"}}, "did you mean 'colour'? in inner", "inner.color"),
    ({"size": 1, "inners": [{}, {"color": 1}]}, "did you mean 'colour'? in inners.1", "inners.1.color"),
    ({"size": 1, "inner": {"colour": "green"}}, "inner.colour must be 'red' or 'blue', got 'green'", "inner.colour"),
    ({"size": 1, "inner": 7}, "inner must be an object, got 7", "inner"),
    ({"size": 1, "either": {}}, "either must be str or list[int], got {}", "either"),
    ({"size": 1, "names": []}, "names must not be empty", "names"),
    ({"size": 1, "names": ["a"] * 9}, "names must have at most 2 entries", "names"),
    ({"size": 1, "checked": 0}, "checked must be more than 0", "checked"),
    ({"size": 1, "checked": 1}, "one is a lonely number", "checked"),
    ({"size": [0] * 10**6}, "size must be a valid integer, got a list of 1000000", "size"),
    ({"size": 1, "inner": {"colour": 10**5000}}, "got an integer of more than 64 bits", "inner.colour"),
    ({"size": "x" * 10**6}, "...", "size"),
    (7, "the body must be an object, got 7", None),
]


@pytest.mark.parametrize(("value", "sentence", "name"), TABLE, ids=[str(i) for i in range(len(TABLE))])
def test_the_sentence_says_what_to_change(value: Any, sentence: str, name: str | None) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    found, where = explain(caught.value, Outer)
    assert sentence in found
    assert where == name
    assert "\n" not in found
    assert len(found) < 250


def test_a_key_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        Inner.model_validate({"api_keys": ["sk-secret"]})
    assert "sk-secret" not in explain(caught.value, Inner)[0]


def test_keys_below_unions_and_lists_are_known() -> None:
    assert valid_keys(Outer, ["inners", 3]) == valid_keys(Outer, ["inner"]) == ["api_keys", "colour"]
    assert valid_keys(Outer, ["size"]) == []
