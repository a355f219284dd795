"""Objects of several kinds cost one error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import TypeAdapter

from octavo.errors import BadRequest
from octavo_serve.api.body import Body, parse
from octavo_serve.surfaces.decisions.reading import one_of


class Cat(Body):
    type: Literal["cat"]
    lives: int = 9


class Dog(Body):
    type: Literal["dog"]


Pet = Annotated[Cat | Dog, one_of({"cat": Cat, "dog": Dog, "fish": "fish are not let in"})]


class House(Body):
    pet: Pet
    more: list[Pet] | None = None


def test_kinds() -> None:
    house = parse(House, {"pet": {"type": "cat"}, "more": [{"type": "dog"}]})
    assert (house.pet, house.more) == (Cat(type="cat"), [Dog(type="dog")])


@pytest.mark.parametrize(
    ("pet", "where", "said"),
    [
        ({"type": "cow"}, "pet", "pet must be of one of the kinds cat, dog; got 'cow'"),
        ({"type": ["cat"]}, "pet", "got ['cat']"),
        ({"type": "fish"}, "pet", "fish are not let in"),
        ({"type": "cat", "live": 1}, "pet.live", "unknown field 'pet.live': did you mean 'lives'?"),
        ({"type": "cat", "lives": "x"}, "pet.lives", "pet.lives must be a valid integer, got 'x'"),
        ("cat", "pet", "pet must be an object with a type"),
    ],
)
def test_what_is_wrong_is_said_once(pet: Any, where: str, said: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(House, {"pet": pet})
    assert said in str(refused.value)
    assert refused.value.param == where


def test_the_schema_lists_the_kinds() -> None:
    schema = TypeAdapter(House).json_schema()
    assert schema["properties"]["pet"]["anyOf"] == [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]


def test_a_hostile_kind_is_shown_in_part() -> None:
    with pytest.raises(BadRequest) as refused:
        parse(House, {"pet": {"type": "x" * 10**6}})
    assert len(str(refused.value)) < 200
