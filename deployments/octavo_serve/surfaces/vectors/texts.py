"""A field that holds one text or many, as texts or token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from octavo.errors import BadRequest
from octavo_serve.api.jobs import Prompt
from octavo_serve.api.pooling import Asking
from octavo_serve.api.texts import Text


def texts_of(given: str | list[str] | list[int] | list[list[int]], param: str) -> Sequence[Text]:
    """The texts of a field of the type `fields.Prompt`.

    Raises:
        BadRequest: there are none.
    """
    if given == []:
        raise BadRequest(f"{param} must not be empty", param)
    one: Prompt | None = given if isinstance(given, str) or isinstance(given[0], int) else None
    return given if one is None else [one]  # type: ignore[return-value]


def named(asking: Asking, texts: Sequence[Text], given: Any) -> Asking:
    """The same, whose errors name the field alone where it held one text."""
    one = not isinstance(given, list) or (len(texts) == 1 and texts[0] is given)
    return replace(asking, name=lambda _: asking.param) if one else asking
