"""Structural tags as grammars: free text, in which what stands between a begin and its end keeps to a schema.

Two forms are read, xgrammar's as vLLM and SGLang take them: the older {"structures": [...], "triggers": [...]}, and the
newer {"type": "structural_tag", "format": {...}}, whose formats nest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from octavo.errors import BadRequest
from octavo.text.grammars.sound import check_sound
from octavo.text.grammars.sources import Rule, check_size, grammar_rule, json_rule, lark, literal, loaded, regex_rule

MAX_TAGS = 1024
TEXT = "TEXT: /(?s:.*)/\n"
"""Free text. A rule that is lazy and ends with what begins a tag wins over it."""


def structural_rule(value: Any, param: str) -> Rule:
    """The grammar of a structural tag, or of its JSON.

    Raises:
        BadRequest: it is malformed, too large, or has a format that is not done here.
    """
    value = loaded(value, param) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise BadRequest(f"{param} must be an object with structures and triggers, or with a format", param)
    check_size(value, param)
    is_older = "format" not in value
    writer = _Writer(param, is_older=is_older)
    form = _older(value, param) if is_older else value["format"]
    text = writer.format(form, "format", last=True)
    return Rule(text, tuple(writer.grammars), "".join([TEXT, *writer.rules]))


def _older(value: Mapping[str, Any], param: str) -> dict[str, Any]:
    """The newer form of the older one."""
    structures, triggers = value.get("structures"), value.get("triggers")
    if not isinstance(structures, list) or not isinstance(triggers, list):
        raise BadRequest(f"{param} must hold structures and triggers, two lists, or a format", param)
    tags = [
        {
            "begin": tag.get("begin"),
            "end": tag.get("end"),
            "content": {"type": "json_schema", "json_schema": tag.get("schema")},
        }
        if isinstance(tag, Mapping)
        else tag
        for tag in structures
    ]
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags}


class _Writer:
    """Writes rules of Lark for formats.

    Attributes:
        rules: lines beside the one that is being written.
        grammars: name -> Lark of clients' own.
    """

    def __init__(self, param: str, *, is_older: bool) -> None:
        self._param = param
        self._is_older = is_older
        self.rules: list[str] = []
        self.grammars: list[tuple[str, str]] = []
        self._writers = {
            "const_string": self._const,
            "json_schema": self._json,
            "regex": self._regex,
            "grammar": self._grammar,
            "any_text": self._any_text,
            "sequence": self._sequence,
            "or": self._or,
            "tag": self._tag,
            "triggered_tags": self._triggered,
            "tags_with_separator": self._separated,
        }

    def format(self, form: Any, where: str, *, last: bool) -> str:
        """The right side of a rule for a format.

        Args:
            where: its path, for errors.
            last: nothing comes after it.
        """
        kind = form.get("type") if isinstance(form, Mapping) else None
        write = self._writers.get(kind) if isinstance(kind, str) else None
        if write is None:
            raise self._bad(where, f"must be an object whose type is one of {', '.join(self._writers)}")
        return write(form, where, last)

    def _const(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        return self._literal(form, "value", where) or '""'

    def _json(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        param = self._at(f"{where}.json_schema")
        schema = form.get("json_schema")
        schema = loaded(schema, param) if isinstance(schema, str) else schema
        made = json_rule(schema, param)
        check_sound(schema, param, lambda part: lark(json_rule(part, param)))
        return made.text

    def _regex(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        return regex_rule(form.get("pattern"), self._at(f"{where}.pattern")).text

    def _grammar(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        name = f"own_{len(self.grammars)}"
        made = grammar_rule(form.get("grammar"), self._at(f"{where}.grammar"), name)
        self.grammars += made.grammars
        return made.text

    def _any_text(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        if form.get("excludes"):
            raise self._bad(f"{where}.excludes", "is not supported: leave it out")
        if not last:
            raise self._bad(where, "is free text, which must stand at the end, or in a tag with an end")
        return "TEXT"

    def _sequence(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        parts = self._list(form, "elements", where)
        end = len(parts) - 1
        texts = [self.format(part, f"{where}.elements.{i}", last=last and i == end) for i, part in enumerate(parts)]
        return " ".join(f"({text})" for text in texts)

    def _or(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        parts = self._list(form, "elements", where)
        return " | ".join(f"({self.format(part, f'{where}.elements.{i}', last=last)})" for i, part in enumerate(parts))

    def _tag(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        return f"{self._literal(form, 'begin', where)} {self._rest(form, where, last)}"

    def _rest(self, tag: Mapping[str, Any], where: str, last: bool) -> str:
        """A tag without its begin."""
        content, end = tag.get("content"), self._literal(tag, "end", where)
        if end and isinstance(content, Mapping) and content.get("type") == "any_text":
            self._any_text(content, f"{where}.content", True)
            return self._lazy(end)
        return f"({self.format(content, f'{where}.content', last=last and not end)}) {end}"

    def _lazy(self, end: str) -> str:
        """Text up to the first place where it ends with this."""
        name = f"until_{len(self.rules)}"
        self.rules.append(f"{name}[lazy]: TEXT {end}\n")
        return name

    def _triggered(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        """Text in which a trigger begins one of the tags that begin with it."""
        if not last:
            raise self._bad(where, "holds free text, so that nothing can come after it")
        triggers = self._list(form, "triggers", where)
        if not all(isinstance(trigger, str) and trigger for trigger in triggers):
            raise self._bad(f"{where}.triggers", "must be texts")
        once = bool(form.get("stop_after_first"))
        rests: dict[str, list[str]] = {}
        for number, tag in enumerate(self._list(form, "tags", where)):
            path = f"{where}.tags.{number}"
            begin = self._begin(tag, path)
            trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
            if trigger is None:
                raise self._bad(f"{path}.begin", "must begin with one of the triggers")
            more = self._spelled(begin[len(trigger) :])
            rests.setdefault(trigger, []).append(f"{more} {self._rest(tag, path, False)}")
        tags = [f"{self._lazy(self._spelled(trigger))} ({' | '.join(rest)})" for trigger, rest in rests.items()]
        choice = " | ".join(tags)
        if form.get("at_least_one"):
            return f"({choice})" if once else f"({choice})+ TEXT"
        return f"({choice}) | TEXT" if once else f"({choice})* TEXT"

    def _separated(self, form: Mapping[str, Any], where: str, last: bool) -> str:
        tags = self._list(form, "tags", where)
        for number, tag in enumerate(tags):
            self._begin(tag, f"{where}.tags.{number}")
        name, separator = f"tag_{len(self.rules)}", self._literal(form, "separator", where)
        self.rules.append("")  # its place, so that the tags inside get other names
        place = len(self.rules) - 1
        texts = [self._tag(tag, f"{where}.tags.{i}", False) for i, tag in enumerate(tags)]
        self.rules[place] = f"{name}: {' | '.join(texts)}\n"
        text = name if form.get("stop_after_first") else f"{name} ({separator} {name})*"
        return text if form.get("at_least_one") else f"({text})?"

    def _begin(self, tag: Any, where: str) -> str:
        begin = tag.get("begin") if isinstance(tag, Mapping) else None
        if not isinstance(begin, str) or not begin:
            raise self._bad(where, "must be an object with begin, content and end")
        return begin

    def _literal(self, form: Mapping[str, Any], key: str, where: str) -> str:
        text = form.get(key)
        if not isinstance(text, str):
            raise self._bad(f"{where}.{key}", "must be a text")
        return self._spelled(text)

    def _spelled(self, text: str) -> str:
        return literal(text, self._param) if text else ""

    def _list(self, form: Mapping[str, Any], key: str, where: str) -> list[Any]:
        value = form.get(key)
        if not isinstance(value, list) or not 0 < len(value) <= MAX_TAGS:
            raise self._bad(f"{where}.{key}", f"must be a list of 1 to {MAX_TAGS} entries")
        return value

    def _bad(self, where: str, what: str) -> BadRequest:
        return BadRequest(f"{self._at(where)} {what}", self._at(where))

    def _at(self, where: str) -> str:
        """A field as the request has it."""
        return f"{self._param}.{_OLDER.sub(_older_name, where) if self._is_older else where}"


_OLDER = re.compile(r"format\.(triggers|tags)(\.\d+)?(?:\.content\.json_(schema))?")


def _older_name(match: re.Match[str]) -> str:
    """The older form's name of a field."""
    name = "structures" if match[1] == "tags" else match[1]
    return ".".join([name + (match[2] or ""), *([match[3]] if match[3] else [])])
