"""Writes a message, or the events of its stream."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic_core import from_json

from octavo_serve.api.jobs import Job
from octavo_serve.api.pieces import Begun, CallPart, Piece, Whole
from octavo_serve.api.surface import Writer, to_json
from octavo_serve.surfaces.messages.answers import BlockDeltaKind, Content, Event, Message, Stop, StopReason, Usage
from octavo_serve.surfaces.messages.schemas import MessagesRequest
from octavo_serve.surfaces.messages.signature import sign

_REASONS: dict[str, StopReason] = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "content_filter": "refusal",
}


class MessagesWriter(Writer[Message, Event]):
    """A stream has the message's start, then blocks one after the other, then why the message ended.

    A block has its start, what it says in parts, and its stop; the last part of thinking is its signature.
    """

    def __init__(self, body: MessagesRequest, job: Job, tells: bool) -> None:
        super().__init__(job, tells)
        self._max_tokens = body.max_tokens
        self._omits = body.thinking is not None and body.thinking.display == "omitted"
        self._sent = 0
        self._reasoned = 0
        self._index = -1  # of the last block
        self._open = ""  # its type; "" between blocks
        self._thought: list[str] = []  # what it says, if it is thinking

    def begin(self, begun: Begun) -> list[Event]:
        return [{"type": "message_start", "message": self._message([], 0, 0)}, {"type": "ping"}]

    def piece(self, piece: Piece) -> list[Event]:
        events: list[Event] = []
        self._sent += len(piece.token_ids)
        self._reasoned += piece.reasoning_tokens
        if piece.reasoning:
            self._thinking(piece.reasoning, events)
        if piece.text:
            self._start({"type": "text", "text": ""}, events)
            events.append(self._delta({"type": "text_delta", "text": piece.text}))
        for part in piece.calls:
            self._calling(part, events)
        if piece.finish_reason is not None:
            self._stop(events)
            reason, sequence = self._reason(piece, self._sent)
            stop: Stop = {"stop_reason": reason, "stop_sequence": sequence}
            usage = self._usage(self._sent, self._reasoned)
            events += [{"type": "message_delta", "delta": stop, "usage": usage}, {"type": "message_stop"}]
        return events

    def whole(self, whole: Whole) -> Message:
        (piece,) = whole.choices()
        content: list[Content] = []
        if piece.reasoning:
            shown = "" if self._omits else piece.reasoning
            content.append({"type": "thinking", "thinking": shown, "signature": self._signature(piece.reasoning)})
        if piece.text:
            content.append({"type": "text", "text": piece.text})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments(call.arguments)}
            for call in piece.calls
        ]
        message = self._message(content, whole.tokens, whole.reasoning_tokens)
        message["stop_reason"], message["stop_sequence"] = self._reason(piece, whole.tokens)
        return message

    # ── blocks ──

    def _thinking(self, text: str, events: list[Event]) -> None:
        self._start({"type": "thinking", "thinking": "", "signature": ""}, events)
        self._thought.append(text)
        if not self._omits:
            events.append(self._delta({"type": "thinking_delta", "thinking": text}))

    def _calling(self, part: CallPart, events: list[Event]) -> None:
        if part.name:
            self._stop(events)
            self._start({"type": "tool_use", "id": part.id, "name": part.name, "input": {}}, events)
        if part.arguments:
            events.append(self._delta({"type": "input_json_delta", "partial_json": part.arguments}))

    def _start(self, block: Content, events: list[Event]) -> None:
        """Begin a block, unless the open one is of its type."""
        if self._open == block["type"]:
            return
        self._stop(events)
        self._index += 1
        self._open = block["type"]
        events.append({"type": "content_block_start", "index": self._index, "content_block": block})

    def _stop(self, events: list[Event]) -> None:
        if self._open == "thinking":
            signature = self._signature("".join(self._thought))
            events.append(self._delta({"type": "signature_delta", "signature": signature}))
            self._thought.clear()
        if self._open:
            events.append({"type": "content_block_stop", "index": self._index})
            self._open = ""

    def _delta(self, delta: BlockDeltaKind) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _signature(self, thinking: str) -> str:
        return sign(thinking, carry=self._omits)

    # ── the message ──

    def _message(self, content: list[Content], tokens: int, reasoned: int) -> Message:
        return {
            "id": self.job.id.replace("-", "_"),
            "type": "message",
            "role": "assistant",
            "model": self.job.model.name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(tokens, reasoned),
        }

    def _usage(self, tokens: int, reasoned: int) -> Usage:
        cached = sum(begun.cached_tokens for begun in self.begun.values()) if self.tells else 0
        return {
            "input_tokens": self.job.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": tokens,
            "output_tokens_details": {"thinking_tokens": reasoned},
            "service_tier": "standard",
        }

    def _reason(self, piece: Piece, tokens: int) -> tuple[StopReason, str | None]:
        if piece.finish_reason == "stop" and isinstance(piece.stop_reason, str):
            return "stop_sequence", piece.stop_reason
        if piece.finish_reason == "length" and tokens < self._max_tokens:
            return "model_context_window_exceeded", None
        return _REASONS.get(piece.finish_reason or "", "end_turn"), None


def arguments(text: str) -> Any:
    """A call's arguments; what there is of them where `max_tokens` cut them off."""
    try:
        return msgspec.json.decode(text or "{}")
    except (ValueError, RecursionError):
        pass
    try:
        found = from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
        to_json(found)  # numbers that JSON here does not have
    except (ValueError, OverflowError, RecursionError):
        return {}
    return found
