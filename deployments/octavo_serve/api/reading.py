"""Tells reasoning and calls from content in what a model answers: a stage, for the chats that need one."""

from __future__ import annotations

import re
import secrets
import string
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from octavo.text.default_form import knows_tools
from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.families import DEFAULT_FORM, NONE, READS_DEFAULT_FORM, template_of
from octavo.text.responses.parser import MessagePart, ResponseParser, properties
from octavo_serve.api.chats import Chat
from octavo_serve.api.model import ServedModel
from octavo_serve.api.pieces import CallPart, Piece, Stage


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one request are read.

    Attributes:
        marks: token id -> what stands for it in a piece's text.
        stage: makes the stage of one choice.
    """

    marks: Mapping[int, str]
    stage: Callable[[], Stage]


def template_for(chat: Chat, model: ServedModel) -> BoundTemplate | None:
    """How answers to a chat are written; None where they are content and nothing else."""
    name = model.defaults.response_template
    if chat.tools and name not in (NONE, READS_DEFAULT_FORM) and not _renders_tools(model):
        name = DEFAULT_FORM
    template = template_of(model.tokenizer, name)
    return template if template is not None and (chat.tools or template.reasons) else None


def reading_of(chat: Chat, template: BoundTemplate | None, prompt: str) -> Reading | None:
    """How answers to a chat are read; None where they are content and nothing else.

    Args:
        template: see `template_for`.
        prompt: what the model's template made of the chat.
    """
    if template is None:
        return None
    schemas = properties(tool["function"] for tool in chat.tools) if chat.tools else None
    new_id = _short_id if template.call_ids == "short" else _new_id
    make = partial(ResponseParser, template, schemas, prompt, new_id, one_call=chat.one_call)
    return Reading(template.marks, lambda: ReadingStage(template, make()))


def _renders_tools(model: ServedModel) -> bool:
    templates = model.tokenizer.chat_templates
    return knows_tools(templates.get("tool_use") or templates.get("default") or "")


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class ReadingStage:
    """Makes pieces of content, of reasoning and of calls out of one choice's pieces of text.

    The first piece made of one holds its tokens. Tokens of the reasoning are those between the marks around it; where a
    model has no tokens for these, those that end them, too. Text is read token by token, so that no count depends on
    how many tokens a piece has.
    """

    def __init__(self, template: BoundTemplate, parser: ResponseParser) -> None:
        self._parser = parser
        self._marks = template.marks
        self._runs = deque([0])  # tokens up to each mark whose text has not come yet, and since the last
        self._reasons = parser.in_reasoning  # in the first of them

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        parts, reasoned, place = list[MessagePart](), 0, 0
        for token_id, length in zip(piece.token_ids, piece.lengths, strict=True):
            if token_id in self._marks:
                self._runs.append(0)
            else:
                self._runs[-1] += 1
            if length:
                reasoned += self._read(piece.text[place : (place := place + length)], parts)
        reasoned += self._read(piece.text[place:], parts)
        reason = piece.finish_reason
        if reason is not None:
            reasoned += sum(self._runs) if self._reasons else 0
            parts += self._parser.finish(cut=reason == "length")
            reason = "tool_calls" if reason == "stop" and self._parser.calls else reason
        pieces = [_piece(piece, kind, list(group)) for kind, group in groupby(parts, _kind)]
        pieces = pieces or [_piece(piece, "content", [])]
        pieces[0].token_ids, pieces[0].logprobs, pieces[0].reasoning_tokens = piece.token_ids, piece.logprobs, reasoned
        pieces[0].forced_tokens = piece.forced_tokens
        pieces[-1].finish_reason, pieces[-1].stop_reason = reason, piece.stop_reason
        return pieces

    def _read(self, text: str, parts: list[MessagePart]) -> int:
        """Add what a text says to the parts; returns how many tokens of reasoning ended with it."""
        reasoned, begin = 0, 0
        for mark in _MARK.finditer(text):
            parts += self._parser.push(text[begin : mark.start()])
            reasoned += self._changed()
            begin = mark.end()
            parts += self._parser.push(mark[0])
            count = self._runs.popleft()
            reasoned += count if self._reasons else 0
            self._reasons = self._parser.in_reasoning
        parts += self._parser.push(text[begin:])
        return reasoned + self._changed()

    def _changed(self) -> int:
        """Tokens of reasoning that ended, or none of it before it began, without a mark."""
        if self._reasons == self._parser.in_reasoning:
            return 0
        count, self._runs[0] = self._runs[0], 0
        before, self._reasons = self._reasons, self._parser.in_reasoning
        return count if before else 0


_MARK = re.compile("[\ud800-\udbff]")
_KINDS = {"content": "content", "reasoning": "reasoning", "call": "calls", "arguments": "calls"}


def _kind(part: MessagePart) -> str:
    return _KINDS[part.kind]


def _piece(piece: Piece, kind: str, parts: list[MessagePart]) -> Piece:
    """A piece that says the parts, without what only one of the pieces made of one holds."""
    own = Piece(piece.choice, "", [], None if piece.logprobs is None else [])
    own.cumulative_logprob = piece.cumulative_logprob
    text = "".join(part.text for part in parts)
    if kind == "content":
        own.text = text
    elif kind == "reasoning":
        own.reasoning = text
    else:
        own.calls = _joined(parts)
    return own


def _joined(parts: list[MessagePart]) -> list[CallPart]:
    """A part for each call, with its name where it begins."""
    calls: dict[int, CallPart] = {}
    for part in parts:
        call = calls.setdefault(part.index, CallPart(part.index))
        if part.kind == "call":
            call.name, call.id = part.text, part.id
        else:
            call.arguments += part.text
    return list(calls.values())
