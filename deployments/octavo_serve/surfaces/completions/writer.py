"""Writes a completion's answer, or the events of its stream."""

from __future__ import annotations

from dataclasses import replace

from octavo.text.detokenizer import TextOffsets, prompt_offsets
from octavo_serve.api.jobs import Job
from octavo_serve.api.pieces import Piece, Whole
from octavo_serve.surfaces.completions.logprobs import completion_logprobs, joined_logprobs
from octavo_serve.surfaces.completions.schemas import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from octavo_serve.surfaces.openai.asking import check_prompt_values
from octavo_serve.surfaces.openai.writer import OpenAIWriter


class CompletionWriter(OpenAIWriter[CompletionRequest, Completion, Completion]):
    """An event holds one choice; a choice's first event also has what was requested about its prompt.

    Raises:
        BadRequest: the answer would be too large.
    """

    def __init__(self, body: CompletionRequest, job: Job, tells: bool) -> None:
        super().__init__(body, job, tells)
        self._owes_prompt = bool(job.prompt_texts) or body.prompt_logprobs is not None
        self._started: set[int] = set()
        self._offsets: dict[int, TextOffsets] = {}  # choice -> where its next token begins in its text
        asked = (body.prompt_logprobs, body.logprobs if body.echo else None)
        per_token = sum(1 + count for count in asked if count is not None)
        check_prompt_values(job.prompt_tokens * per_token * body.sequences, body)

    def owed_prompt_tokens(self, piece: Piece) -> int:
        if not self._owes_prompt or piece.choice in self._started:
            return 0
        return len(self._prompt_ids(piece.choice))

    def piece(self, piece: Piece) -> list[Completion]:
        self.sent += len(piece.token_ids)
        owed = self._owes_prompt and piece.choice not in self._started
        if not (owed or self.says_something(piece) or piece.finish_reason):
            return []
        event = self._with([self._choice(piece)])
        return [{**event, "usage": self.usage_so_far} if self.body.wants_usage else event]

    def end(self) -> list[Completion]:
        return [{**self._with([]), "usage": self.usage(self.sent)}] if self.body.wants_usage else []

    def whole(self, whole: Whole) -> Completion:
        choices = [self._choice(piece) for piece in self._best(whole.choices())]
        return {**self._with(choices), "usage": self.usage(whole.tokens)}

    def _best(self, pieces: list[Piece]) -> list[Piece]:
        """For each prompt, its `n` sequences with the highest mean log probability, best first (see `choose_best`)."""
        n, generated = self.job.params.n, self.job.params.num_sequences
        if generated == n:
            return pieces
        best = []
        for start in range(0, len(pieces), generated):
            of_prompt = pieces[start : start + generated]
            best += sorted(of_prompt, key=lambda p: -p.cumulative_logprob / max(1, len(p.token_ids)))[:n]
        return [replace(piece, choice=choice) for choice, piece in enumerate(best)]

    def _with(self, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.job.created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": self.fingerprint,
        }

    def _prompt(self, choice: int) -> int:
        return choice // self.job.params.n

    def _prompt_ids(self, choice: int) -> list[int]:
        return self.job.requests[self._prompt(choice)].prompt_token_ids

    def _choice(self, piece: Piece) -> CompletionChoice:
        text, parts, index = "", [], piece.choice
        first = index not in self._started
        self._started.add(index)
        if first and self.job.prompt_texts:
            text = self.job.prompt_texts[self._prompt(index)]
            parts.append(self._echoed_logprobs(index))
        parts.append(self._logprobs(piece))
        known = [part for part in parts if part is not None]
        choice: CompletionChoice = {
            "index": index,
            "text": text + piece.text,
            "logprobs": joined_logprobs(known) if known else None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
            "prompt_logprobs": self.prompt_logprobs(self._prompt(index)) if first else None,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = piece.token_ids
            if first:
                choice["prompt_token_ids"] = self._prompt_ids(index)
        return choice

    def _logprobs(self, piece: Piece) -> CompletionLogprobs | None:
        if piece.logprobs is None:
            return None
        if (offsets := self._offsets.get(piece.choice)) is None:
            offsets = self._offsets[piece.choice] = self._text_offsets(piece.choice)
        return completion_logprobs(piece.token_ids, list(piece.logprobs), self.names, offsets.push(piece.token_ids))

    def _text_offsets(self, choice: int) -> TextOffsets:
        job = self.job
        start = len(job.prompt_texts[self._prompt(choice)]) if job.prompt_texts else 0
        return TextOffsets(job.model.tokenizer, self._prompt_ids(choice), job.params.skip_special_tokens, start)

    def _echoed_logprobs(self, choice: int) -> CompletionLogprobs | None:
        if self.job.params.logprobs is None:
            return None
        prompt, token_ids = self._prompt(choice), self._prompt_ids(choice)
        offsets = prompt_offsets(self.job.model.tokenizer, token_ids, self.job.prompt_texts[prompt])
        entries = self.begun[prompt].prompt_logprobs
        return completion_logprobs(token_ids, list(entries or ()), self.names, offsets)
