"""Long requests and long answers, cut into messages that each take a millisecond to read.

A prompt of a million tokens takes an event loop 43 ms to read if it is one message. The most log probabilities that one
answer may hold (`bounds.MAX_PROMPT_VALUES`) took 4 s, as objects in one message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from octavo.request import PackedLogprobs, Request, SequenceUpdate
from octavo_serve.wire.messages import PromptPart, RequestPart, Step, Submit, encode

PART_TOKENS = 2**14
"""Token ids in one message: 80 KiB, 0.7 ms."""

PART_HASHES = 2**12
"""Block hashes in one message: 72 KiB, 0.5 ms."""

PART_VALUES = 2**15
"""Log probabilities in one message: 256 KiB."""

STEP_BYTES = 2**19
"""Estimated bytes of one message of updates; an update that has more goes alone. 256 updates of one token with 20 log
probabilities are below it."""

_UPDATE, _TOKEN, _LOGPROB, _PACKED = 500, 5, 50, 12  # bytes on the wire, at most


def is_long(request: Request) -> bool:
    """Whether a request goes in parts."""
    emitted = sum(len(tokens) for tokens in request.emitted or () if tokens)
    return len(request.prompt_token_ids) + emitted > PART_TOKENS


def request_parts(request: Request) -> Iterator[bytes]:
    """A request as encoded messages.

    Raises:
        OverflowError, UnicodeEncodeError: it cannot be encoded; at once, not when the parts are asked for.
    """
    emitted: list[list[int] | None] | None = None
    if request.emitted is not None:
        emitted = [None if tokens is None else [] for tokens in request.emitted]
    hashes = None if request.block_hashes is None else list[bytes]()
    last = encode(Submit(replace(request, prompt_token_ids=[], block_hashes=hashes, emitted=emitted)))
    return _request_parts(request, last)


def _request_parts(request: Request, last: bytes) -> Iterator[bytes]:
    for sequence, tokens in [(None, request.prompt_token_ids), *enumerate(request.emitted or ())]:
        for first in range(0, len(tokens or ()), PART_TOKENS):
            assert tokens is not None
            yield encode(RequestPart(request.request_id, sequence, tokens[first : first + PART_TOKENS]))
    hashes = request.block_hashes or ()
    for first in range(0, len(hashes), PART_HASHES):
        yield encode(RequestPart(request.request_id, None, hashes=[*hashes[first : first + PART_HASHES]]))
    yield last


def logprob_parts(request_id: str, logprobs: PackedLogprobs) -> Iterator[bytes]:
    """A prompt's log probabilities as encoded messages."""
    for part in logprobs.parts(PART_VALUES):
        yield encode(PromptPart(request_id, part))


def steps(updates: list[SequenceUpdate]) -> Iterator[Step]:
    """Updates in messages of about STEP_BYTES at most."""
    first = size = 0
    for place, update in enumerate(updates):
        more = _UPDATE
        if update.logprobs is not None:
            more += sum(_LOGPROB * len(entries) for entries in update.logprobs)
        if len(update.token_ids) > 1:
            more += _TOKEN * len(update.token_ids)
        if update.pooled is not None:
            more += len(update.pooled)
        if update.prompt_logprobs is not None:
            more += _PACKED * update.prompt_logprobs.num_values
        if size and size + more > STEP_BYTES:
            yield Step(updates[first:place])
            first, size = place, 0
        size += more
    if updates:
        yield Step(updates[first:] if first else updates)


class Arriving:
    """The parts of requests that are not complete yet."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[int | None, RequestPart]] = {}  # by request, then by sequence

    def add(self, part: RequestPart) -> None:
        """Keep a part."""
        known = self._parts.setdefault(part.request_id, {}).setdefault(part.sequence, part)
        if known is not part:
            known.token_ids += part.token_ids
            known.hashes += part.hashes

    def drop(self, request_id: str) -> None:
        """Forget a request: the rest will not come."""
        self._parts.pop(request_id, None)

    def complete(self, request: Request) -> Request:
        """The request with what came of it before."""
        for sequence, part in self._parts.pop(request.request_id, {}).items():
            if sequence is not None and request.emitted is not None:
                request.emitted[sequence] = part.token_ids
            elif sequence is None:
                request.prompt_token_ids = part.token_ids
                request.block_hashes = None if request.block_hashes is None else part.hashes
        return request
