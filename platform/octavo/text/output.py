"""Turns the engine's updates into what a caller gets: text, log probabilities with token texts, the finish reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from octavo.request import CompletionOutput, FinishReason, SamplingParams, SequenceUpdate, TokenLogprobs
from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.responses.patterns import marked
from octavo.text.stop import StopStrings
from octavo.text.tokenizer import Tokenizer


class SequenceText:
    """One sequence's output, built up from its updates.

    The token that ended the sequence (the model's end token or one of `stop_token_ids`) is in `token_ids` but not in
    the text, unless `include_stop_str_in_output` is set. Stop strings are looked for after `min_tokens` tokens; the
    token that completes one is the last in `token_ids` and `logprobs`. All of this is as in vLLM.

    Args:
        marks: token id -> what stands for the token in the text (see `IncrementalDetokenizer`).

    Attributes:
        token_ids: all tokens so far.
        lengths: characters of the text that became final with each of them; what the end makes final is in none.
        logprobs: one entry per token, with `decoded_token` filled in, or None when not asked for.
        cumulative_logprob: of all tokens; see `SequenceUpdate`.
        finish_reason: None while the sequence goes on.
        stop_reason: the stop string or token id that ended it.
        stopped: a stop string ended the sequence, so the engine must be told to cancel it (unless it ended there
            by itself); further updates are ignored.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        prompt_token_ids: Sequence[int] = (),
        index: int = 0,
        marks: Mapping[int, str] | None = None,
    ) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.lengths: list[int] = []
        self.logprobs: list[TokenLogprobs] | None = None
        self.cumulative_logprob = 0.0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.stopped = False
        self._pieces: list[str] = []
        self._tokenizer = tokenizer
        self._min_tokens = params.min_tokens
        self._tells_logprobs = params.num_logprobs is not None
        ends = () if params.ignore_eos else tokenizer.eos_token_ids
        # a grammar that is complete ends a text without one of these
        self._silent = frozenset(() if params.include_stop_str_in_output else (*ends, *params.stop_token_ids))
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids, params.skip_special_tokens, marks)
        self._asked = {stop: stop for stop in params.stop_strings}  # what is looked for -> what was asked for
        if marks and self._asked:
            self._asked |= _marked_stops(tokenizer, params, marks)
        self._stops = StopStrings(tuple(self._asked), params.include_stop_str_in_output)

    def push(self, update: SequenceUpdate) -> str:
        """Apply an update. Returns the new text that is final: never half a character or half a stop string."""
        if self.finish_reason is not None:
            return ""
        self.cumulative_logprob = update.cumulative_logprob
        delta = ""
        for position, token_id in enumerate(update.token_ids):
            self._append(token_id, update, position)
            if token_id in self._silent and update.finish_reason == "stop" and position == len(update.token_ids) - 1:
                break
            delta += (text := self._through_stops(self._detokenizer.push([token_id])))
            self.lengths[-1] = len(text)
            if self.stopped:
                self._drop_logprobs(update, position + 1)
                break
        if update.finish_reason is not None and not self.stopped:
            delta += self._finish(update.finish_reason, update.stop_reason)
        self._pieces.append(delta)
        return delta

    @property
    def text(self) -> str:
        """All text so far."""
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    def output(self) -> CompletionOutput:
        """The sequence as `LLM.generate` returns it."""
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=self.token_ids,
            cumulative_logprob=self.cumulative_logprob,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def _append(self, token_id: int, update: SequenceUpdate, position: int) -> None:
        self.token_ids.append(token_id)
        self.lengths.append(0)
        if update.logprobs is not None and self._tells_logprobs:
            self.logprobs = self.logprobs or []
            self.logprobs.append(fill_decoded(self._tokenizer, update.logprobs[position]))

    def _through_stops(self, text: str) -> str:
        text, stop = self._stops.push(text, search=len(self.token_ids) > self._min_tokens)
        if stop is not None:
            self.stopped = True
            self.finish_reason, self.stop_reason = "stop", self._asked[stop]
        return text

    def _finish(self, reason: FinishReason, stop_reason: int | str | None) -> str:
        self.finish_reason, self.stop_reason = reason, stop_reason
        text = self._through_stops(self._detokenizer.finish())
        return text if self.stopped else text + self._stops.finish()

    def _drop_logprobs(self, update: SequenceUpdate, kept: int) -> None:
        """Subtract the tokens after the stop string from the cumulative sum, if their log probabilities are known."""
        if update.logprobs is not None:
            dropped = zip(update.token_ids[kept:], update.logprobs[kept:], strict=True)
            self.cumulative_logprob -= sum(logprobs[token_id].logprob for token_id, logprobs in dropped)


def _marked_stops(tokenizer: Tokenizer, params: SamplingParams, marks: Mapping[int, str]) -> dict[str, str]:
    """Stop strings as they read where marks stand for the tokens in them -> the strings.

    Hidden tokens have no text. A stop string that ends within a token's text is not found there.
    """
    shown = {
        text: marks[token_id]
        for text, token_id in tokenizer.added_tokens.items()
        if token_id in marks and not (params.skip_special_tokens and tokenizer.is_special(token_id))
    }
    return {marked(stop, shown): stop for stop in params.stop_strings}


def fill_decoded(tokenizer: Tokenizer, logprobs: TokenLogprobs) -> TokenLogprobs:
    """Fill in `decoded_token` of one position's log probabilities, in place; works for prompt tokens too."""
    for token_id, entry in logprobs.items():
        entry.decoded_token = tokenizer.token_text(token_id)
    return logprobs


def choose_best(sequences: Sequence[CompletionOutput], n: int) -> list[CompletionOutput]:
    """The `n` sequences with the highest mean log probability per token, best first, re-indexed from 0.

    Equal means keep the order of their indices. Needs `cumulative_logprob`, which the engine sums whenever `best_of`
    is asked for.
    """
    ranked = sorted(sequences, key=lambda s: (-(s.cumulative_logprob or 0.0) / max(1, len(s.token_ids)), s.index))
    return [dataclasses.replace(sequence, index=i) for i, sequence in enumerate(ranked[:n])]
