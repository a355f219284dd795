"""Writes TGI's answers, or the events of its streams: one per token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from octavo.errors import BadRequest
from octavo_serve.api.bounds import MAX_PROMPT_VALUES
from octavo_serve.api.jobs import Job
from octavo_serve.api.pieces import Element, Piece, Whole
from octavo_serve.api.surface import A, Writer
from octavo_serve.surfaces.tgi.asking import parameters_of
from octavo_serve.surfaces.tgi.schemas import (
    BestOfSequence,
    Details,
    FinishReason,
    GenerateRequest,
    Generation,
    PrefillToken,
    SequenceDetails,
    StreamDetails,
    StreamEvent,
    Token,
)
from octavo_serve.surfaces.tgi.tokens import TokenTexts, prefill, token, top_tokens


class TGIWriter(Writer[A, StreamEvent]):
    """Base of both writers.

    Raises:
        BadRequest: the answer would be too large.
    """

    def __init__(self, body: GenerateRequest, job: Job, tells: bool) -> None:
        super().__init__(job, tells)
        parameters = parameters_of(body)
        self._details = bool(parameters.details or parameters.decoder_input_details)
        self._top = parameters.top_n_tokens or 0
        self._seed = job.requests[0].seed if job.params.temperature else None
        self._prompt = job.prompt_texts[0] if job.prompt_texts else ""
        self._tokenizer = job.model.tokenizer
        self._prompt_ids = job.requests[0].prompt_token_ids
        self._texts: list[str] = []
        self._tokens = TokenTexts(self._tokenizer, self._prompt_ids)
        self._index = 0
        if job.params.prompt_logprobs is not None and job.prompt_tokens * job.params.num_sequences > MAX_PROMPT_VALUES:
            raise BadRequest(
                f"the answer would hold the input more often than fits {MAX_PROMPT_VALUES} tokens: lower best_of",
                "best_of",
            )

    def is_large(self, element: Element) -> bool:
        return isinstance(element, Piece) and self.job.is_large(0, len(element.token_ids))

    def piece(self, piece: Piece) -> list[StreamEvent]:
        self._texts.append(piece.text)
        ended = piece.finish_reason is not None
        if ended and not piece.token_ids:  # the last event has a token, and a text that a grammar lets be empty none
            piece = replace(piece, token_ids=[min(self._tokenizer.eos_token_ids, default=0)], logprobs=None)
        whole = "".join(self._texts) if ended else None
        events: list[StreamEvent] = []
        for place, (one, top) in enumerate(self._elements(piece, self._tokens, whole)):
            self._index += 1
            last = ended and place == len(piece.token_ids) - 1
            event: StreamEvent = {
                "index": self._index,
                "token": one,
                "generated_text": self._prompt + (whole or "") if last else None,
                "details": self._stream_details(piece) if last and self._details else None,
            }
            events.append(event | {"top_tokens": top} if self._top else event)
        return events

    def generation(self, whole: Whole) -> Generation:
        """The answer: of several sequences, the one with the highest mean log probability."""
        pieces = sorted(whole.choices(), key=lambda p: -p.cumulative_logprob / max(1, len(p.token_ids)))
        answer: Generation = {"generated_text": self._prompt + pieces[0].text}
        if self._details:
            answer["details"] = cast("Details", self._described(pieces[0]))
            if len(pieces) > 1:
                answer["details"]["best_of_sequences"] = [self._sequence(piece) for piece in pieces[1:]]
        return answer

    def _sequence(self, piece: Piece) -> BestOfSequence:
        return {"generated_text": self._prompt + piece.text, **self._described(piece)}

    def _described(self, piece: Piece) -> SequenceDetails:
        elements = list(self._elements(piece, TokenTexts(self._tokenizer, self._prompt_ids), piece.text))
        details: SequenceDetails = {
            "finish_reason": finish_reason(piece),
            "generated_tokens": len(piece.token_ids),
            "seed": self._seed,
            "prefill": self._prefill(),
            "tokens": [one for one, _ in elements],
        }
        if self._top:
            details["top_tokens"] = [top for _, top in elements]
        return details

    def _prefill(self) -> list[PrefillToken]:
        return prefill(self._tokenizer, self._prompt_ids, self.begun[0].prompt_logprobs)

    def _elements(self, piece: Piece, texts: TokenTexts, whole: str | None) -> Iterator[tuple[Token, list[Token]]]:
        """Each token of a piece and those that were as likely.

        Args:
            whole: the sequence's text, if the piece ends it.
        """
        last = len(piece.token_ids) - 1
        for place, token_id in enumerate(piece.token_ids):
            entries = piece.logprobs[place] if piece.logprobs else None
            text = texts.push(token_id, whole if place == last else None)
            top = top_tokens(self._tokenizer, entries, self._top) if entries and self._top else []
            yield token(self._tokenizer, token_id, text, entries), top

    def _stream_details(self, piece: Piece) -> StreamDetails:
        return {
            "finish_reason": finish_reason(piece),
            "generated_tokens": self._index,
            "seed": self._seed,
            "input_length": self.job.prompt_tokens,
        }


class GenerateWriter(TGIWriter[Generation]):
    """Of /generate and /generate_stream."""

    def whole(self, whole: Whole) -> Generation:
        return self.generation(whole)


class CompatWriter(TGIWriter[list[Generation]]):
    """Of /, whose answer is a list, as the Inference API's."""

    def whole(self, whole: Whole) -> list[Generation]:
        return [self.generation(whole)]


def finish_reason(piece: Piece) -> FinishReason:
    """Why a sequence ended, in TGI's words."""
    if piece.finish_reason != "stop":
        return "length"
    return "stop_sequence" if isinstance(piece.stop_reason, str) else "eos_token"
