"""Which part of a schema an error is about: llguidance says what is wrong, and not where.

Parts are left out, half of them at a time, and the whole is checked again: the part is inside what must stay for the
sentence to stay. That is followed downwards, and where a part only refers to another, to that one. Of the part that is
left one keyword may be named in the same way. A sentence that takes several parts (an `allOf` of two types) is about
what holds them.

    a 400: `response_format.json_schema.schema.properties.address.items.pattern: regex parse error: ...`
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from octavo.errors import BadRequest

SECONDS = 0.1
"""Of CPU time for a search, after which the last check still ends: one takes 1 ms, 5 with 300 properties, and 18 at
worst, with the limits of light grammars."""

SAVED, SHARE = 3.0, 0.03
"""Seconds of CPU for all searches of a process: so many at once, and then this share of a core. Errors that come ten a
second are nobody's who reads them, and looking for their places would take a core from streams."""

_SHOWN = 80
"""Characters of a property's name in a path."""

Check: TypeAlias = Callable[[Any], None]
"""Raises a BadRequest if a schema is wrong."""

_Part: TypeAlias = tuple[tuple[str, ...], Any, Any]
"""The steps to a part of a schema, and what holds it under which key."""

_ONE = (
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LISTED = "allOf", "anyOf", "items", "oneOf", "prefixItems"
_CHOICES = "anyOf", "oneOf"
"""Of these a part that allows nothing says nothing; of all others one that allows anything."""
_NAMED = "dependentSchemas", "patternProperties", "properties"


def blamed(error: BadRequest, schema: Any, check: Check) -> BadRequest:
    """The error with the path inside the schema that it is about, or as it is where that cannot be told, or others took
    the time.

    Args:
        error: its sentence begins with its field.
        check: what raised it of the schema; called up to some dozen times, as long as `SECONDS` allow.
    """
    begin = time.thread_time()
    try:
        path = _Search(error, schema, check).path() if _allowance.is_left() else []
    except RecursionError:  # a schema in a client's own grammar may be deep
        path = []
    _allowance.spend(time.thread_time() - begin)
    if not path or error.param is None:
        return error
    param = ".".join([error.param, *(step[:_SHOWN] for step in path)])
    return BadRequest(param + error.message.removeprefix(error.param), param)


class Allowance:
    """Seconds of CPU that searches may take; for any thread."""

    def __init__(self) -> None:
        self._left, self._at = SAVED, time.monotonic()
        self._lock = threading.Lock()

    def is_left(self) -> bool:
        """Whether there is any."""
        with self._lock:
            now = time.monotonic()
            self._left, self._at = min(SAVED, self._left + SHARE * (now - self._at)), now
            return self._left > 0

    def spend(self, seconds: float) -> None:
        """So much was taken."""
        with self._lock:
            self._left -= seconds


_allowance = Allowance()


class _Search:
    """Looks for the part that is wrong, in a copy of which more and more is left out."""

    def __init__(self, error: BadRequest, schema: Any, check: Check) -> None:
        self._sentence = _without_line(error)
        self._root = copy.deepcopy(schema)
        self._check = check
        self._until = time.thread_time() + SECONDS
        self._path: list[str] = []

    def path(self) -> list[str]:
        """The steps from the root; none where the whole is wrong, or something else is."""
        if self._stays():
            with suppress(TimeoutError):
                self._go_down()
        return self._path

    def _go_down(self) -> None:
        node, seen = self._root, [self._root]
        while isinstance(node, dict):
            if found := self._narrowed(list(_parts(node))):
                steps, holder, key = found
                self._path, node = [*self._path, *steps], holder[key]
                continue
            keyword = self._keyword(node)
            target = self._referred(node) if keyword == "$ref" else None
            if target is None or any(target[1] is one for one in seen):
                self._path += [] if keyword is None else [keyword]
                return
            self._path, node = target
            seen.append(node)

    def _narrowed(self, parts: list[_Part]) -> _Part | None:
        """The one part that must stay; None where the sentence stays without any of them, or goes without some."""
        if not parts or self._stays_without(parts):
            return None
        while len(parts) > 1:
            half, rest = parts[: len(parts) // 2], parts[len(parts) // 2 :]
            if self._stays_without(half, keep=True):
                parts = rest
            elif self._stays_without(rest, keep=True):
                parts = half
            else:
                return None
        return parts[0]

    def _stays_without(self, parts: list[_Part], *, keep: bool = False) -> bool:
        """Whether the sentence stays where parts say nothing; with `keep`, they go on doing so if it does."""
        values = [holder[key] for _, holder, key in parts]
        for steps, holder, key in parts:
            holder[key] = steps[0] not in _CHOICES
        stays = self._stays()
        if not (stays and keep):
            for (_, holder, key), value in zip(parts, values, strict=True):
                holder[key] = value
        return stays

    def _keyword(self, node: dict[str, Any]) -> str | None:
        """The one keyword without which the sentence goes."""
        found, whole = [], dict(node)
        for key in whole:
            del node[key]
            found += [] if self._stays() else [key]
            node.clear()
            node.update(whole)
        return found[0] if len(found) == 1 else None

    def _referred(self, node: Mapping[str, Any]) -> tuple[list[str], Any] | None:
        """What a part refers to in this schema, and the steps to it."""
        text = node["$ref"]
        if not isinstance(text, str) or not text.startswith("#/"):
            return None
        steps = [step.replace("~1", "/").replace("~0", "~") for step in text[2:].split("/")]
        target = self._root
        for step in steps:
            if not isinstance(target, dict) or step not in target:
                return None
            target = target[step]
        return steps, target

    def _stays(self) -> bool:
        """Whether the schema, as it is now, is wrong in the same way.

        Raises:
            TimeoutError: there is no time to find out.
        """
        if time.thread_time() > self._until:
            raise TimeoutError
        try:
            self._check(self._root)
        except BadRequest as error:
            return _without_line(error) == self._sentence
        return False


def _without_line(error: BadRequest) -> str:
    """Its sentence without the line of a grammar, which moves when parts are left out."""
    return error.message.partition(" (line ")[0]


def _parts(node: Mapping[str, Any]) -> Iterator[_Part]:
    """The schemas of which a schema is made, without those that it only names."""
    for key in _ONE:
        if isinstance(node.get(key), dict):
            yield (key,), node, key
    for key in _LISTED:
        if isinstance(listed := node.get(key), list):
            yield from (((key, str(place)), listed, place) for place, _ in enumerate(listed))
    for key in _NAMED:
        if isinstance(named := node.get(key), dict):
            yield from (((key, name), named, name) for name in named)
