"""Every setting of an application by its path, with its type, its default and its sentence: read from the settings
classes and their docstrings, which are what a config is checked with."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from octavo.request import SamplingParams
from octavo.scaling.policy import Targets
from octavo_serve.config.settings import AppSettings, ReplicaRange, SamplingDefaults

Path = tuple[str, ...]
_TOLD_BY: dict[type[Any], type[Any]] = {ReplicaRange: Targets, SamplingDefaults: SamplingParams}
"""Settings whose words stand where they are used."""
_ENTRY = re.compile(r"^ {4}(\w[\w, ]*): (.*)$")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        path: below `args`; the settings of a model are below "models", though that is a list.
        kinds: the plain types that it may have, `list` beside those of its entries; of a Literal, the texts.
        default: None where there is none, or where it is made anew for each use.
        says: what the docstring says of it, in one line; "" where that says nothing.
    """

    path: Path
    kinds: tuple[type[Any] | str, ...]
    default: Any
    says: str


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting of `AppSettings`, in the order of the classes; those that hold others come before these."""
    return tuple(_of(AppSettings, ()))


def _of(kind: type[Any], path: Path) -> Iterator[Setting]:
    says = _attributes(kind)
    for name, annotation, default in _fields(kind):
        kinds = tuple(dict.fromkeys(_plain(annotation)))
        yield Setting((*path, name), kinds, default, says.get(name, ""))
        for inner in kinds:
            if _holds_settings(inner):
                yield from _of(inner, (*path, name))


def _fields(kind: type[Any]) -> Iterator[tuple[str, Any, Any]]:
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield name, field.annotation, None if field.default is PydanticUndefined else field.default
    else:
        hints = get_type_hints(kind)
        for each in dataclasses.fields(kind):
            yield each.name, hints[each.name], None if each.default is dataclasses.MISSING else each.default


def _holds_settings(kind: type[Any] | str) -> TypeGuard[type[Any]]:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def _plain(annotation: Any) -> Iterator[type[Any] | str]:
    """The types and texts in an annotation, without what pydantic puts beside them."""
    if get_origin(annotation) is list:
        yield list
    if get_origin(annotation) is dict:
        yield dict
        return
    for inner in get_args(annotation):
        yield from _plain(inner)
    if isinstance(annotation, type | str) and not get_args(annotation):
        yield annotation


def _attributes(kind: type[Any]) -> dict[str, str]:
    """The entries of a docstring's "Attributes", each as one line; several names may share one."""
    found: dict[str, str] = {}
    told = [_TOLD_BY[kind]] if kind in _TOLD_BY else []
    for base in [*told, *reversed(kind.__mro__[:-1])]:
        _, _, listed = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        names: list[str] = []
        for line in listed.splitlines():
            if entry := _ENTRY.match(line):
                names = [name.strip() for name in entry[1].split(",")]
                found |= dict.fromkeys(names, entry[2])
            elif line.startswith(" " * 8):
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
