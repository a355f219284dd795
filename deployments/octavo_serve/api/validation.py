"""Turns pydantic's errors into one sentence: the field, what it must be, and the nearest valid key for an unknown
one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from octavo.config import unknown_key

_MISSING = "missing"
_CLASS = re.compile(r"(?:a valid dictionary or )?(?:an )?instance of \w+")
_EXTRA = "extra_forbidden", "unexpected_keyword_argument"


class WrongInside(ValueError):
    """What a validator raises for a value that it validates as a model of its own.

    Args:
        sentence, name: from `explain` of that model's error.
    """

    def __init__(self, sentence: str, name: str | None) -> None:
        super().__init__(sentence)
        self.name = name

    def below(self, parent: str) -> tuple[str, str]:
        """Sentence and name, with the name of what holds the value."""
        if self.name is None:
            return f"{parent}: {self}", parent
        name = f"{parent}.{self.name}"
        return str(self).replace(self.name, name, 1), name


def explain(error: ValidationError, root: Any, where: str = "field") -> tuple[str, str | None]:
    """A sentence that says what to change, and the dotted name of the field (None for the whole input).

    Args:
        error: from validating something as `root`.
        root: the pydantic model or dataclass; its nested keys are the valid ones.
        where: what a key is called in the sentence ("field", "setting").
    """
    problems = error.errors(include_url=False)
    problem = _most_telling(problems)
    extra, last = problem["type"] in _EXTRA, len(problem["loc"]) - 1
    kept = [p for i, p in enumerate(problem["loc"]) if not _is_branch(p) or (extra and i == last)]  # a key, no branch
    path = [part[:80] if isinstance(part, str) else part for part in kept]
    shown = _without_tags(root, path)
    name = ".".join(shown) or None
    if extra:
        parent = ".".join(shown[:-1])
        inside = f" in {parent}" if parent else ""
        return unknown_key(shown[-1], valid_keys(root, path[:-1]), where) + inside, name
    whole, mapping = (
        ("the body", "an object") if where == "field" else ("what args holds", "a mapping of keys to values")
    )
    if problem["type"] == _MISSING:
        return f"{where} {name!r} is required", name
    if problem["type"] == "value_error":  # raised by our own validators: a sentence, or the end of one
        inside = f" in {name}" if where == "setting" and name else ""
        if isinstance(problem["ctx"]["error"], WrongInside) and name:
            return problem["ctx"]["error"].below(name)
        sentence = str(problem["ctx"]["error"])
        return f"{name} {sentence}" if sentence.startswith("must be") else f"{sentence}{inside}", name
    if problem["type"] == "too_short":
        return f"{name} must not be empty", name
    if problem["type"] == "too_long":
        return f"{name} must have at most {problem['ctx']['max_length']} entries", name
    union = _union(problems, problem["loc"]) if problem["type"].endswith("_type") else None
    sentence = union or problem["msg"].replace("Input should be", "must be").replace("String should have", "must have")
    sentence = _CLASS.sub(mapping, sentence)
    got = "" if "api_keys" in path else f", got {_short(problem['input'])}"  # a key must not come into a log
    return f"{name or whole} {sentence[0].lower()}{sentence[1:]}{got}", name


def _most_telling(problems: list[Any]) -> Any:
    """The error to report: an unknown key if there is one, else the error of the union branch that the value fits
    best."""
    extra = next((found for found in problems if found["type"] in _EXTRA), None)
    first = problems[0]["loc"][:1]
    same = [found for found in problems if found["loc"][:1] == first]
    inside = next((found for found in same if len(found["loc"]) > len(problems[0]["loc"]) + 1), problems[0])
    return extra or next((found for found in same if not found["type"].endswith("_type")), inside)


def _union(problems: list[Any], where: tuple[int | str, ...]) -> str | None:
    """The types that a field may have, if pydantic tried several; None otherwise."""
    branch = next((i for i, part in enumerate(where) if _is_branch(part)), None)
    if branch is None or len(where) > branch + 2:  # what is wrong lies further inside
        return None
    tried = [problem["loc"][branch] for problem in problems if problem["loc"][:branch] == where[:branch]]
    kinds = dict.fromkeys(_short_kind(str(kind)) for kind in tried)
    return f"must be {' or '.join(kinds)}" if len(kinds) > 1 else None


def _short_kind(kind: str) -> str:
    """A branch without the names of validators and classes."""
    return kind.partition("[")[0] if "-" in kind.partition("[")[2] else kind.replace("constrained-", "")


def _short(value: object) -> str:
    """A value in a few words, whatever its size: the repr of a list of a million entries takes a second."""
    if isinstance(value, (list, dict)) and not _is_small(value):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "an integer of more than 64 bits"
    shown = repr(value[:80] if isinstance(value, (str, bytes)) else value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _is_small(value: list[Any] | dict[Any, Any]) -> bool:
    """Whether it has few values, none of them a container, a long text or an integer that Python refuses to print."""
    if len(value) > 8:
        return False
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return not any(
        (isinstance(part, (list, dict)) and part)
        or (isinstance(part, str) and len(part) > 80)
        or (isinstance(part, int) and abs(part) >= 2**64)
        for part in inner
    )


def valid_keys(root: Any, path: Sequence[int | str]) -> list[str]:
    """Names of the keys that are valid at `path` below a model."""
    kinds = [root]
    for part in path:
        kinds = _inside(kinds, part)
    return sorted({name for kind in kinds for name in _names(kind)})


def _without_tags(root: Any, path: Sequence[int | str]) -> list[str]:
    """A path as clients know it: pydantic puts the tag of a union, such as a block's `type`, into it."""
    kinds, shown = [root], []
    for part in path:
        if not _tagged(kinds, part):
            shown.append(str(part))
        kinds = _inside(kinds, part)
    return shown


def _inside(kinds: list[Any], part: int | str) -> list[Any]:
    return _tagged(kinds, part) or [
        inner for kind in kinds for inner in (_members(kind) if isinstance(part, int) else _field(kind, part))
    ]


def _tagged(kinds: list[Any], part: int | str) -> list[Any]:
    """Those of several models whose `type` is `part`."""
    found = [kind for kind in kinds if part in _field(kind, "type")]
    return found if len(found) < len(kinds) else []


def _is_branch(part: int | str) -> bool:
    """Pydantic puts the tried branch of a union into the path: `list[str]`, `function-wrap[...]`, `int`, `str`."""
    plain = "int", "str", "float", "bool", "dict", "list"
    return isinstance(part, str) and (part in plain or "[" in part or part.startswith("constrained-"))


def _names(kind: Any) -> list[str]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [field.alias or name for name, field in kind.model_fields.items()]
    known = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    return [field.name for field in dataclasses.fields(kind)] if known else []


def _members(annotation: Any) -> list[Any]:
    """The plain types in an annotation, inside unions, lists and Annotated."""
    inner = get_args(annotation)
    return [member for arg in inner for member in _members(arg)] if inner else [annotation]


def _field(kind: Any, name: str) -> list[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
        return _members(kind.model_fields[name].annotation)
    return []
