"""Values that can be used in both shapes in which chat templates expect a message's fields; see `chat`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jinja2


class TemplateMessage(dict[str, Any]):
    """A message; if it has no content, `content` is a `NoContent`."""

    def __missing__(self, key: str) -> Any:
        if key == "content":
            return NoContent(name="content")
        raise KeyError(key)


class NoContent(jinja2.Undefined):
    """Counts as undefined in a template's tests, and acts as an empty text in operations that would fail on
    undefined."""

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
    """A plain content for templates that loop over parts: a loop sees one text part, everything else a string."""

    def __iter__(self) -> Iterator[Any]:
        return iter([{"type": "text", "text": str(self)}])

    def __getitem__(self, key: Any) -> Any:
        """Index as a string does; an index into an empty one gives a `NoContent`."""
        return super().__getitem__(key) if self or isinstance(key, slice) else NoContent(name="content")


class Arguments(dict[str, Any]):
    """A tool call's arguments: a dict that is written as the JSON text the client sent.

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
