"""`BoundTemplate`: a response template in one tokenizer's tokens."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.text.responses.patterns import Finder, Node, Pattern, PatternError, marked
from octavo.text.responses.template import ResponseTemplate, TemplateError
from octavo.text.responses.values import CallBody

FIRST_MARK = 0xD800
MAX_MARKS = 0x400
END = 4096
"""Characters of a prompt's end in which the assistant's turn is looked for."""


class BoundTemplate:
    """A template for one tokenizer: tokens that it names are matched by id, whatever a text spells.

    Args:
        template: in the family's words.
        tokens: texts of the tokenizer's added tokens -> ids.

    Attributes:
        marks: token id -> mark, the character that stands for the token in what the parser reads.
        names: mark -> the token's text.
        fields: by name.
        bodies: of the fields that hold calls.
        ends: what closes each field that holds text.
        reasons: whether reasoning is told from content.
        strips_content: whether spaces between content and delimiters belong to neither.

    Raises:
        TemplateError: a delimiter is not one.
    """

    def __init__(self, template: ResponseTemplate, tokens: Mapping[str, int]) -> None:
        named = sorted(text for text in tokens if len(text) > 2 and any(text in said for said in template.texts))
        self._marks = {text: chr(FIRST_MARK + number) for number, text in enumerate(named[:MAX_MARKS])}
        self.marks: Mapping[int, str] = {tokens[text]: mark for text, mark in self._marks.items()}
        self.names: Mapping[str, str] = {mark: text for text, mark in self._marks.items()}
        self.fields = {field.name: field for field in template.fields}
        self.reasons = any(field.role == "reasoning" for field in template.fields)
        self.strips_content = all(f.args.get("strip", True) for f in template.fields if f.role == "content")
        self.call_ids = template.call_ids
        try:
            self._openings = [(f.name, self._pattern(f.opening)) for f in template.fields if f.opening is not None]
            self._closings = {f.name: self._pattern(f.closing) for f in template.fields if f.closing is not None}
            self.bodies = {
                f.name: CallBody(f, self._closings.get(f.name), self.names)
                for f in template.fields
                if f.role == "calls"
            }
            self._anchor = None if template.anchor is None else Finder([("", Pattern(template.anchor, {}))])
        except PatternError as error:
            raise TemplateError(str(error)) from error
        self.ends = {
            f.name: Finder([("", self._closings[f.name])] if f.name in self._closings else [])
            for f in template.fields
            if f.role != "calls"
        }

    def outside(self, *, calls: bool) -> Finder:
        """What may end the text outside of all regions: the openings, and with the key "" what closes that itself.

        Args:
            calls: whether calls may begin.
        """
        found = [(name, pattern) for name, pattern in self._openings if calls or self.fields[name].role != "calls"]
        own = next((field.name for field in self.fields.values() if field.opening is None), "")
        return Finder([*found, *([("", self._closings[own])] if own in self._closings else [])])

    def closes(self, name: str) -> bool:
        """Whether a field is closed by something."""
        return name in self._closings

    def end_of_prompt(self, prompt: str) -> str:
        """What a prompt says after the last beginning of an assistant's turn, with marks for its tokens."""
        if self._anchor is None:
            return ""
        end = prompt[-END:]
        pos, after = 0, len(end)
        while isinstance(found := self._anchor.find(end, pos, final=True), tuple):
            pos = after = found[1].end
        return marked(end[after:], self._marks)

    def _pattern(self, node: Node) -> Pattern:
        return Pattern(node, self.names)
