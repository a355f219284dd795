"""What the writers of chats and completions share: usage, token names, log probabilities of prompts."""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from hashlib import blake2b
from typing import Generic, TypeVar

from octavo import __version__
from octavo.request import TokenLogprobs
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.jobs import Job
from octavo_serve.api.pieces import Element, Piece
from octavo_serve.api.surface import A, E, Writer
from octavo_serve.surfaces.openai.schemas import PromptLogprob, PromptLogprobs, SamplingBody, Usage

R = TypeVar("R", bound=SamplingBody)


class TokenIdNames:
    """Names each token "token_id:ID", as vLLM does on request, because texts can be ambiguous."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def token_text(self, token_id: int) -> str:
        """The token's name."""
        return f"token_id:{token_id}"

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes."""
        return self._tokenizer.token_bytes(token_id)


Names = Tokenizer | TokenIdNames


class OpenAIWriter(Writer[A, E], Generic[R, A, E]):
    """Base of both writers.

    Attributes:
        id, model, fingerprint: values in the answer and in each of its events.
        names: names of tokens in log probabilities.
        sent: tokens in the events so far.
        reasoned: those of them that are reasoning.
    """

    def __init__(self, body: R, job: Job, tells: bool) -> None:
        super().__init__(job, tells)
        self.body = body
        self.id = f"{job.id.partition('-')[0]}-{body.request_id}" if body.request_id else job.id
        self.model = job.model.name
        self.fingerprint = fingerprint(job.hash_name)
        tokenizer = job.model.tokenizer
        self.names: Names = TokenIdNames(tokenizer) if body.return_tokens_as_token_ids else tokenizer
        self.sent = 0
        self.reasoned = 0
        self._prompt_tokens = job.prompt_tokens
        self._says_logprobs = job.params.logprobs is not None or job.params.prompt_logprobs is not None
        self._usage_so_far = body.stream_options is not None and bool(body.stream_options.continuous_usage_stats)

    def is_large(self, element: Element) -> bool:
        if not self._says_logprobs or not isinstance(element, Piece):
            return False
        return self.job.is_large(self.owed_prompt_tokens(element), len(element.token_ids))

    @abstractmethod
    def owed_prompt_tokens(self, piece: Piece) -> int:
        """Number of prompt tokens whose log probabilities the next events of a piece's choice contain."""

    def usage(self, completion_tokens: int, reasoning_tokens: int = 0) -> Usage:
        """Token counts."""
        prompt_tokens = self._prompt_tokens
        cached_tokens = sum(begun.cached_tokens for begun in self.begun.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens} if self.tells else None,
            "completion_tokens_details": {
                "reasoning_tokens": reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": self.job.accepted,
                "rejected_prediction_tokens": self.job.rejected,
            },
        }

    @property
    def usage_so_far(self) -> Usage | None:
        """The `usage` of a stream's events before the last one: the tokens sent so far."""
        return self.usage(self.sent, self.reasoned) if self._usage_so_far else None

    def says_something(self, piece: Piece) -> bool:
        """Whether a piece must be sent to the client."""
        tells_tokens = self.body.return_token_ids or self.job.tells_origins
        return bool(piece.text or piece.logprobs or (tells_tokens and piece.token_ids))

    def prompt_logprobs(self, prompt: int) -> PromptLogprobs | None:
        """vLLM's `prompt_logprobs`; None if they were not requested."""
        if self.body.prompt_logprobs is None:
            return None
        tokenizer = self.job.model.tokenizer
        return [_of_token(tokens, tokenizer) for tokens in self.begun[prompt].prompt_logprobs or ()]


def _of_token(entries: TokenLogprobs | None, tokenizer: Tokenizer) -> dict[str, PromptLogprob] | None:
    if entries is None:
        return None
    return {
        str(token_id): {
            "logprob": finite(entry.logprob),
            "rank": entry.rank,
            "decoded_token": tokenizer.token_text(token_id),
        }
        for token_id, entry in entries.items()
    }


@lru_cache
def fingerprint(model: str) -> str:
    """The API's `system_fingerprint`: changes with the model and with Octavo's version."""
    return "fp_" + blake2b(f"{__version__}\0{model}".encode(), digest_size=5).hexdigest()


def finite(logprob: float) -> float:
    """Replace infinity, which JSON does not have, by vLLM's value for an impossible token."""
    return max(logprob, -9999.0)
