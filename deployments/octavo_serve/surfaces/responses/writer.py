"""Writes a response, or the events of its stream: items that begin, grow and end, one after the other."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, cast

from octavo_serve.api.custom_tools import input_of
from octavo_serve.api.failures import Failure
from octavo_serve.api.jobs import Job
from octavo_serve.api.pieces import Begun, CallPart, Element, Piece, Whole
from octavo_serve.api.surface import Writer
from octavo_serve.surfaces.openai.writer import finite
from octavo_serve.surfaces.responses.asking import Turn
from octavo_serve.surfaces.responses.errors import named
from octavo_serve.surfaces.responses.schemas import (
    ContentPart,
    EventType,
    ItemStatus,
    OutputItem,
    Response,
    ResponseEvent,
    ResponsesRequest,
    ResponseUsage,
    Status,
    TextOptions,
    TokenLogprob,
    TopLogprob,
)
from octavo_serve.surfaces.responses.tools import Known


class ResponseWriter(Writer[Response, ResponseEvent]):
    """A stream has `created` and `in_progress`, the events of each item, and the whole response at its end.

    Attributes:
        response: what is known of it so far.
        token_ids: that were generated so far.
    """

    def __init__(self, body: ResponsesRequest, job: Job, tells: bool) -> None:
        super().__init__(job, tells)
        self.turn: Turn = job.context
        self.response = _response(body, job, self.turn)
        self.token_ids: list[int] = []
        self._reasoned = 0
        self._number = 0
        self._events: list[ResponseEvent] = []
        self._open: _Item | None = None
        self._reasoning_as: _Place = "summary" if _wants_summary(body) else "content"
        self._top = job.params.logprobs

    def is_large(self, element: object) -> bool:
        if isinstance(element, Piece) and element.finish_reason is None:
            return self.job.is_large(0, len(element.token_ids))
        return self.job.is_large(0, len(self.token_ids))  # the last events say all of it again

    def begin(self, begun: Begun) -> list[ResponseEvent]:
        self.response["status"] = "in_progress"
        self.say("response.created", response=self.now())
        self.say("response.in_progress", response=self.now())
        return self._taken()

    def piece(self, piece: Piece) -> list[ResponseEvent]:
        self.token_ids += piece.token_ids
        self._reasoned += piece.reasoning_tokens
        if piece.reasoning:
            self._growing(_Reasoning).grow(piece.reasoning)
        if piece.text or (piece.logprobs and not piece.reasoning and not piece.calls):
            self._say_text(piece)
        for part in piece.calls:
            self._call(part)
        if piece.finish_reason is not None:
            self._finish(piece.finish_reason)
        return self._taken()

    def end(self) -> list[ResponseEvent]:
        response = self.response
        incomplete = response["status"] == "incomplete"
        self.say("response.incomplete" if incomplete else "response.completed", response=response)
        return self._taken()

    def gathered(self) -> Whole:
        return _InOrder(self)

    def whole(self, whole: Whole) -> Response:
        return self.response

    async def settle(self) -> None:
        if self.turn.keep is not None:
            await self.turn.keep(self.response, self.job.requests[0].prompt_token_ids, self.token_ids)

    def now(self) -> Response:
        """The response as it is now."""
        return {**self.response, "output": list(self.response["output"])}

    def cancelled(self) -> None:
        """It was cancelled."""
        if self._open is not None:
            self._close("incomplete")
        self._end_with("cancelled")
        self._taken()

    def failed(self, failure: Failure) -> list[ResponseEvent]:
        """The last event of a stream that cannot go on."""
        if self._open is not None:
            self._close("incomplete")
        code = {429: "rate_limit_exceeded", 400: failure.code or "invalid_prompt"}.get(failure.status, "server_error")
        failure = named(failure)
        self.response["error"] = {"code": code, "message": failure.message, "param": failure.param}
        self._end_with("failed")
        self.say("response.failed", response=self.response)
        return self._taken()

    # ── events ──

    def say(self, kind: EventType, **fields: Any) -> None:
        """Add an event."""
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        self._events.append(cast(ResponseEvent, event))

    def _taken(self) -> list[ResponseEvent]:
        events, self._events = self._events, []
        return events

    # ── items ──

    def _growing(self, kind: type[_Item]) -> Any:
        """The item that is open, if it is of this kind; otherwise a new one."""
        if type(self._open) is not kind:
            if self._open is not None:
                self._close("completed")
            self._begin_item(kind(self, self._index, f"{self.turn.key}_{self._index}"))
        return self._open

    @property
    def _index(self) -> int:
        return len(self.response["output"])

    def _begin_item(self, item: _Item) -> None:
        self._open = item
        item.begin()

    def _close(self, status: ItemStatus) -> None:
        assert self._open is not None
        item = self._open.end(status)
        self.say("response.output_item.done", output_index=self._index, item=item)
        self.response["output"].append(item)
        self._open = None

    def _say_text(self, piece: Piece) -> None:
        logprobs = [] if self._top is None else _logprobs(piece, self.job, self._top)
        if piece.text or isinstance(self._open, _Message):
            self._growing(_Message).grow(piece.text, logprobs)

    def _call(self, part: CallPart) -> None:
        if part.name:
            if self._open is not None:
                self._close("completed")
            known = self.turn.tools.known.get(part.name) or Known(part.name)
            kind = _CustomCall if known.custom else _FunctionCall
            self._begin_item(kind(self, self._index, f"{self.turn.key}_{self._index}", known, part.id))
        assert isinstance(self._open, _Call)
        self._open.grow(part.arguments)

    def _finish(self, reason: str) -> None:
        incomplete = reason in ("length", "abort")
        if self._open is not None:
            self._close("incomplete" if incomplete else "completed")
        elif not self._index:
            self._growing(_Message).grow("", [])
            self._close("incomplete" if incomplete else "completed")
        if incomplete:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._end_with("incomplete" if incomplete else "completed")

    def _end_with(self, status: Status) -> None:
        self.response["status"] = status
        self.response["completed_at"] = int(time.time()) if status == "completed" else None
        self.response["usage"] = self._usage()

    def _usage(self) -> ResponseUsage:
        cached = sum(begun.cached_tokens for begun in self.begun.values()) if self.tells else 0
        read, wrote = self.job.prompt_tokens, len(self.token_ids)
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": wrote,
            "output_tokens_details": {"reasoning_tokens": self._reasoned},
            "total_tokens": read + wrote,
        }


class _InOrder(Whole):
    """Output that is written as it comes: a response keeps the order in which texts, reasoning and calls came."""

    def __init__(self, writer: ResponseWriter) -> None:
        super().__init__()
        self._writer = writer

    def add(self, elements: Sequence[Element]) -> None:
        for element in elements:
            self._writer.events(element)
            if isinstance(element, Begun):
                self.begun[element.prompt] = element
            elif isinstance(element, Piece):
                self.tokens += len(element.token_ids)


_Place = Literal["content", "summary"]


class _Item(ABC):
    """An item that grows.

    Attributes:
        index: in the output.
        texts: what came so far.
    """

    prefix: str

    def __init__(self, writer: ResponseWriter, index: int, key: str) -> None:
        self.writer = writer
        self.index = index
        self.id = f"{self.prefix}_{key}"
        self.texts: list[str] = []

    def begin(self) -> None:
        """Say that it begins."""
        self.writer.say("response.output_item.added", output_index=self.index, item=self.item("in_progress"))

    @abstractmethod
    def item(self, status: ItemStatus) -> OutputItem:
        """It as it is now; while it is in progress, without what it holds."""

    @abstractmethod
    def end(self, status: ItemStatus) -> OutputItem:
        """Say all of it again, but not that the item has ended; returns it whole."""

    def say(self, kind: EventType, **fields: Any) -> None:
        """Add an event about it."""
        self.writer.say(kind, item_id=self.id, output_index=self.index, **fields)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class _Message(_Item):
    """A message of one part.

    Attributes:
        logprobs: of all its tokens.
        held: of those whose text has not come yet.
    """

    prefix = "msg"

    def __init__(self, writer: ResponseWriter, index: int, key: str) -> None:
        super().__init__(writer, index, key)
        self.logprobs: list[TokenLogprob] = []
        self.held: list[TokenLogprob] = []

    def begin(self) -> None:
        super().begin()
        self.say("response.content_part.added", content_index=0, part=self._part("", []))

    def grow(self, text: str, logprobs: list[TokenLogprob]) -> None:
        """Add a text."""
        self.held += logprobs
        if text:
            self.texts.append(text)
            self.say("response.output_text.delta", content_index=0, delta=text, logprobs=self.held)
            self.logprobs += self.held
            self.held = []

    def item(self, status: ItemStatus) -> OutputItem:
        content = [] if status == "in_progress" else [self._part(self.text, self.logprobs)]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def end(self, status: ItemStatus) -> OutputItem:
        self.logprobs += self.held
        text = self.text
        self.say("response.output_text.done", content_index=0, text=text, logprobs=self.logprobs)
        self.say("response.content_part.done", content_index=0, part=self._part(text, self.logprobs))
        return self.item(status)

    def _part(self, text: str, logprobs: list[TokenLogprob]) -> ContentPart:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


class _Reasoning(_Item):
    """Reasoning: its text is the item's content, or where a summary is asked for, the summary."""

    prefix = "rs"

    def __init__(self, writer: ResponseWriter, index: int, key: str) -> None:
        super().__init__(writer, index, key)
        self._summary = writer._reasoning_as == "summary"
        self._at = {"summary_index" if self._summary else "content_index": 0}

    def begin(self) -> None:
        super().begin()
        self._part_says("added", "")

    def grow(self, text: str) -> None:
        """Add a text."""
        self.texts.append(text)
        self._text_says("delta", delta=text)

    def item(self, status: ItemStatus) -> OutputItem:
        parts = [] if status == "in_progress" else [self._part(self.text)]
        item: OutputItem = {"id": self.id, "type": "reasoning", "status": status, "summary": []}
        item["summary" if self._summary else "content"] = parts
        if self.writer.turn.seal is not None and status != "in_progress":
            item["encrypted_content"] = self.writer.turn.seal(self.text)
        return item

    def end(self, status: ItemStatus) -> OutputItem:
        text = self.text
        self._text_says("done", text=text)
        self._part_says("done", text)
        return self.item(status)

    def _part_says(self, what: str, text: str) -> None:
        name = "reasoning_summary_part" if self._summary else "content_part"
        self.say(cast(EventType, f"response.{name}.{what}"), part=self._part(text), **self._at)

    def _text_says(self, what: str, **said: str) -> None:
        name = "reasoning_summary_text" if self._summary else "reasoning_text"
        self.say(cast(EventType, f"response.{name}.{what}"), **said, **self._at)

    def _part(self, text: str) -> ContentPart:
        return {"type": "summary_text" if self._summary else "reasoning_text", "text": text}


class _Call(_Item):
    """A call of a tool."""

    def __init__(self, writer: ResponseWriter, index: int, key: str, known: Known, call_id: str) -> None:
        super().__init__(writer, index, key)
        self.known = known
        self.call_id = call_id

    @abstractmethod
    def grow(self, arguments: str) -> None:
        """Add to its arguments."""

    def named(self, kind: Literal["function_call", "custom_tool_call"], status: ItemStatus) -> OutputItem:
        """The item without its arguments."""
        item: OutputItem = {"id": self.id, "type": kind, "status": status, "call_id": self.call_id}
        item["name"] = self.known.name
        if self.known.namespace:
            item["namespace"] = self.known.namespace
        return item


class _FunctionCall(_Call):
    """A call of a function; its arguments are JSON."""

    prefix = "fc"

    def grow(self, arguments: str) -> None:
        if arguments:
            self.texts.append(arguments)
            self.say("response.function_call_arguments.delta", delta=arguments)

    def item(self, status: ItemStatus) -> OutputItem:
        arguments = "" if status == "in_progress" else self.text
        return {**self.named("function_call", status), "arguments": arguments}

    def end(self, status: ItemStatus) -> OutputItem:
        self.say("response.function_call_arguments.done", name=self.known.name, arguments=self.text)
        return self.item(status)


class _CustomCall(_Call):
    """A call of a custom tool: the text is one argument of what the model calls, and comes when the call is whole."""

    prefix = "ctc"

    def grow(self, arguments: str) -> None:
        self.texts.append(arguments)

    def item(self, status: ItemStatus) -> OutputItem:
        given = "" if status == "in_progress" else input_of(self.text)
        return {**self.named("custom_tool_call", status), "input": given}

    def end(self, status: ItemStatus) -> OutputItem:
        given = input_of(self.text)
        self.say("response.custom_tool_call_input.delta", delta=given)
        self.say("response.custom_tool_call_input.done", input=given)
        return self.item(status)


# ── the response ──


def _response(body: ResponsesRequest, job: Job, turn: Turn) -> Response:
    """The response before anything of it has come."""
    params, text = job.params, body.text or TextOptions()
    reasoning = body.reasoning
    return {
        "id": turn.id,
        "object": "response",
        "created_at": job.created,
        "completed_at": None,
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": job.model.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning is not None else None,
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning is not None else None,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": turn.tools.shown,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _wants_summary(body: ResponsesRequest) -> bool:
    reasoning = body.reasoning
    return reasoning is not None and (reasoning.summary or reasoning.generate_summary or "none") != "none"


def _logprobs(piece: Piece, job: Job, top: int) -> list[TokenLogprob]:
    """Log probabilities of a piece's tokens that have a text."""
    found: list[TokenLogprob] = []
    tokenizer = job.model.tokenizer
    for token_id, entries in zip(piece.token_ids, piece.logprobs or (), strict=True):
        if tokenizer.is_special(token_id):
            continue
        ranked = sorted(entries.items(), key=lambda item: item[1].rank)[:top]
        alternatives = [_top_logprob(job, other, entry.logprob) for other, entry in ranked]
        found.append({**_top_logprob(job, token_id, entries[token_id].logprob), "top_logprobs": alternatives})
    return found


def _top_logprob(job: Job, token_id: int, logprob: float) -> TopLogprob:
    tokenizer = job.model.tokenizer
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
