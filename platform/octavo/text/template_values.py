"""Values that answer to the two shapes in which chat templates expect a field of a message; see `chat`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jinja2


class TemplateMessage(dict[str, Any]):
    """A message; a content that it has not is undefined, and yet an empty text."""

    def __missing__(self, key: str) -> Any:
        if key == "content":
            return NoContent(name="content")
        raise KeyError(key)


class NoContent(jinja2.Undefined):
    """Undefined to every test of a template, and an empty text to what would fail on it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr("", name)

    def __getitem__(self, key: object) -> NoContent:  # type: ignore[override]  # Jinja's raises
        return self

    def __add__(self, other: Any) -> Any:
        return other

    __radd__ = __add__


class OnePart(str):
    """A plain content, for templates that loop over parts: one text part to a loop, a string to everything else."""

    def __iter__(self) -> Iterator[Any]:
        return iter([{"type": "text", "text": str(self)}])

    def __getitem__(self, key: Any) -> Any:
        """As of a string; the first of an empty one is undefined, and so is its type."""
        return super().__getitem__(key) if self or isinstance(key, slice) else NoContent(name="content")


class Arguments(dict[str, Any]):
    """A tool call's arguments: the object, and as a text the JSON that the client sent.

    Args:
        values: the object.
        text: its JSON.
    """

    def __init__(self, values: dict[str, Any], text: str) -> None:
        super().__init__(values)
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return Arguments, (dict(self), self.text)

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: Any) -> Any:
        return self.text + other

    def __radd__(self, other: Any) -> Any:
        return other + self.text
