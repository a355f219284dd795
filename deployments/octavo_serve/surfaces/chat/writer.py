"""Writes a chat's answer, or the events of its stream."""

from __future__ import annotations

from dataclasses import replace

from octavo_serve.api.custom_tools import input_of
from octavo_serve.api.jobs import Job
from octavo_serve.api.pieces import CallPart, Piece, Whole
from octavo_serve.surfaces.chat.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    CustomInput,
    CustomToolCall,
    CustomToolCallDelta,
    Delta,
    FunctionDelta,
    TokenLogprob,
    TokenOrigins,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
)
from octavo_serve.surfaces.chat.tools import custom_tools
from octavo_serve.surfaces.openai.asking import check_prompt_values
from octavo_serve.surfaces.openai.writer import Names, OpenAIWriter, finite


class ChatWriter(OpenAIWriter[ChatRequest, ChatCompletion, ChatChunk]):
    """A stream has, for each choice, its role, then deltas of what it says, then its finish reason.

    Raises:
        BadRequest: the answer would be too large.
    """

    def __init__(self, body: ChatRequest, job: Job, tells: bool) -> None:
        super().__init__(body, job, tells)
        self._started: set[int] = set()
        self._custom = custom_tools(body.tools or ())
        self._held: dict[int, CallPart] = {}  # by choice, the call of a custom tool that has begun
        self._tells_reasoning = body.include_reasoning is not False
        if body.prompt_logprobs is not None:
            check_prompt_values(job.prompt_tokens * (1 + body.prompt_logprobs), body)

    def owed_prompt_tokens(self, piece: Piece) -> int:
        return 0 if self._started else self.job.prompt_tokens

    def piece(self, piece: Piece) -> list[ChatChunk]:
        chunks = []
        if piece.choice not in self._started:
            chunks.append(self._first_chunk(piece.choice))
        self.sent += len(piece.token_ids)
        self.reasoned += piece.reasoning_tokens
        said = self._said(piece)
        if whole := self._whole_custom(piece):
            said = {**(said or {"content": piece.text}), "tool_calls": [*whole, *(said or {}).get("tool_calls", [])]}
        if said or self.says_something(piece):
            delta = _delta(piece.choice, said or {"content": piece.text})
            delta["logprobs"] = self._logprobs(piece)
            if self.body.return_token_ids:
                delta["token_ids"] = piece.token_ids
            if self.job.tells_origins:
                delta["token_origins"] = _origins(piece)
            chunks.append(self._chunk([delta]))
        if piece.finish_reason is not None:
            last = _delta(piece.choice, {})
            last["finish_reason"] = piece.finish_reason
            last["stop_reason"] = piece.stop_reason
            chunks.append(self._chunk([last]))
        return chunks

    def end(self) -> list[ChatChunk]:
        return [{**self._chunk([]), "usage": self.usage(self.sent, self.reasoned)}] if self.body.wants_usage else []

    def whole(self, whole: Whole) -> ChatCompletion:
        answer: ChatCompletion = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.job.created,
            "model": self.model,
            "choices": [self._choice(piece) for piece in whole.choices()],
            "usage": self.usage(whole.tokens, whole.reasoning_tokens),
            "system_fingerprint": self.fingerprint,
            "service_tier": None,
            "prompt_logprobs": self.prompt_logprobs(0),
        }
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = self.job.requests[0].prompt_token_ids
        return answer

    def _choice(self, piece: Piece) -> ChatChoice:
        choice: ChatChoice = {
            "index": piece.choice,
            "message": self._message(piece),
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = piece.token_ids
        if self.job.tells_origins:
            choice["token_origins"] = _origins(piece)
        return choice

    def _message(self, piece: Piece) -> AssistantMessage:
        message: AssistantMessage = {"role": "assistant", "content": piece.text, "refusal": None}
        if piece.reasoning and self._tells_reasoning:
            message["reasoning_content"] = message["reasoning"] = piece.reasoning
        if piece.calls:
            message["content"] = piece.text or None
            message["tool_calls"] = [self._call(call) for call in piece.calls]
        return message

    def _call(self, call: CallPart) -> ToolCall | CustomToolCall:
        if call.name in self._custom:
            return {"id": call.id, "type": "custom", "custom": _custom(call)}
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

    def _said(self, piece: Piece) -> Delta | None:
        """What a piece says beside content and calls of custom tools."""
        if piece.reasoning and self._tells_reasoning:
            return {"reasoning_content": piece.reasoning, "reasoning": piece.reasoning}
        held = self._held.get(piece.choice)
        told = [
            call
            for call in piece.calls
            if call.name not in self._custom and (call.name or held is None or call.index != held.index)
        ]
        return {"tool_calls": [_call_delta(call) for call in told]} if told else None

    def _whole_custom(self, piece: Piece) -> list[CustomToolCallDelta]:
        """The calls of custom tools that are whole with a piece: their input is known at their end."""
        whole: list[CallPart] = []
        for part in piece.calls if self._custom else ():
            held = self._held.get(piece.choice)
            if part.name and held is not None:
                whole.append(self._held.pop(piece.choice))
            if part.name in self._custom:
                self._held[piece.choice] = replace(part)
            elif not part.name and held is not None and held.index == part.index:
                held.arguments += part.arguments
        if piece.finish_reason is not None and piece.choice in self._held:
            whole.append(self._held.pop(piece.choice))
        return [{"index": call.index, "id": call.id, "type": "custom", "custom": _custom(call)} for call in whole]

    def _first_chunk(self, choice: int) -> ChatChunk:
        """The event with a choice's role; the first one also holds the prompt's log probabilities and token ids."""
        chunk = self._chunk([_delta(choice, {"role": "assistant", "content": ""})])
        if not self._started and self.body.return_token_ids:
            chunk["prompt_token_ids"] = self.job.requests[0].prompt_token_ids
        if not self._started and self.body.prompt_logprobs is not None:
            chunk["prompt_logprobs"] = self.prompt_logprobs(0)
        self._started.add(choice)
        return chunk

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        chunk: ChatChunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.job.created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": self.fingerprint,
        }
        if self.body.wants_usage:
            chunk["usage"] = self.usage_so_far
        return chunk

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return None if piece.logprobs is None else chat_logprobs(piece, self.names, self.job.params.logprobs or 0)


def _origins(piece: Piece) -> TokenOrigins:
    return {"sampled": len(piece.token_ids) - piece.forced_tokens, "forced": piece.forced_tokens}


def _delta(choice: int, delta: Delta) -> ChunkChoice:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}


def _call_delta(call: CallPart) -> ToolCallDelta:
    if not call.name:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function: FunctionDelta = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _custom(call: CallPart) -> CustomInput:
    return {"name": call.name, "input": input_of(call.arguments)}


def chat_logprobs(piece: Piece, names: Names, top: int) -> ChatLogprobs:
    """Log probabilities in chat's form, with the `top` most likely alternatives of each token."""
    content: list[TokenLogprob] = []
    for token_id, entries in zip(piece.token_ids, piece.logprobs or (), strict=True):
        ranked = sorted(entries.items(), key=lambda item: item[1].rank)[:top]
        chosen = _top_logprob(names, token_id, entries[token_id].logprob)
        alternatives = [_top_logprob(names, other, entry.logprob) for other, entry in ranked]
        content.append({**chosen, "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def _top_logprob(names: Names, token_id: int, logprob: float) -> TopLogprob:
    return {"token": names.token_text(token_id), "logprob": finite(logprob), "bytes": list(names.token_bytes(token_id))}
