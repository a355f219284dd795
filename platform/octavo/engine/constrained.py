"""What the next token of a sequence must keep to: its grammar, its budget for thinking, lists of tokens.

    free ── what begins it ──> in the grammar ── it is complete ──> the end, or free again

A grammar that waits for its beginning costs nothing. In it a row has a mask, and what it leaves no choice about is
*forced*: such tokens are known without being sampled, and the scheduler sees a short prompt to compute. Tokens of a
forced text are those of the tokenizer's own tokenization; the last of them are left to the model where other tokens
could begin there (llguidance's docs/fast_forward.md).

All of a sequence's state follows from its tokens. So a sequence that goes on elsewhere replays them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from octavo.constraint import Grammar, Thinking
from octavo.request import SamplingParams
from octavo.step import Int64, Uint32
from octavo.text.grammars.compiler import Compiler, told
from octavo.text.grammars.whitespace import WhitespaceRun

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from octavo.engine.masks import Making

P = ParamSpec("P")
T = TypeVar("T")

FORCING = True
"""Whether forced tokens are known tokens; tests and proofs turn it off. Then masks of one token say the same."""

SUSPECTED = 2
"""Tokens that a suspect is looked at for; a slow one keeps it a suspect."""

SLOW_TOKEN = 0.005
"""Seconds of CPU that checking a token may take on average; a usual one takes 50 us."""

SLOW_REQUEST = 0.1
"""Seconds that a request may take beyond that, all tokens of its sequences together, before these end: all others wait
meanwhile."""

TOLD = 0.0005
"""Seconds in a grammar after which its memory is counted anew."""

_ENDED_WELL = ("NoExtension", "EndOfSentence")


def is_constrained(params: SamplingParams) -> bool:
    """Whether a request needs any of this."""
    return bool(
        params.grammar is not None
        or params.thinking is not None
        or params.allowed_token_ids is not None
        or params.bad_token_ids
    )


@dataclass(slots=True)
class Debt:
    """Seconds of CPU that a request's tokens took to check, beyond SLOW_TOKEN each."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class RequestRules:
    """What all sequences of a request must keep to.

    Attributes:
        matcher: of the grammar, at its beginning.
        blank: mask of white space alone, where the grammar is JSON.
        allowed: mask of `allowed_token_ids`.
        never: tokens that are not drawn.
        bad: sequences of two tokens and more that are not completed, by their last token but one.
        ends: tokens that are not drawn before `min_tokens`, where others can be.
        marks: tokens among those that close the thinking which are no text: each of them closes it.
        reads_text: whether a text begins the grammar or closes the thinking, wherever tokens cut it.
        token_bytes: the text of a token.
        greedy: tokens of a text.
        discard: called where a matcher failed.
        grew: told of seconds that were spent in the grammar.
        words: of a mask.
        debt: of all of them together.
    """

    grammar: Grammar | None
    matcher: LLMatcher | None
    thinking: Thinking | None
    blank: Uint32 | None
    allowed: Uint32 | None
    never: Int64
    bad: dict[int, list[tuple[int, ...]]]
    ends: Int64 | None
    min_tokens: int
    marks: frozenset[int]
    reads_text: bool
    token_bytes: Callable[[int], bytes]
    greedy: Callable[[bytes], list[int]]
    discard: Callable[[], None]
    grew: Callable[[float], None]
    words: int
    debt: Debt = field(default_factory=Debt)

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        compiler: Compiler | None,
        matcher: LLMatcher | None,
        ends: Iterable[int],
        vocab_size: int,
    ) -> RequestRules:
        """Those of a request.

        Args:
            compiler: of the model's grammars; None where there are none.
            matcher: of the request's grammar.
            ends: tokens that end a sequence.
        """
        grammar, allowed = params.grammar, None
        blank: Uint32 | None = None
        discard: Callable[[], None] = _nothing
        grew: Callable[[float], None] = _untold
        token_bytes: Callable[[int], bytes] = _no_bytes
        greedy: Callable[[bytes], list[int]] = _no_tokens
        added: set[int] = set()
        if compiler is not None:
            added = set(compiler.vocabulary.tokenizer.added_tokens.values())
            token_bytes = compiler.vocabulary.tokenizer.token_bytes
            if grammar is not None:
                greedy = compiler.vocabulary.tokens_of
                blank = compiler.vocabulary.blank() if grammar.is_json else None
                discard, grew = partial(compiler.discard, grammar), partial(compiler.grew, grammar)
        if params.allowed_token_ids is not None:
            allowed = mask_of(params.allowed_token_ids, vocab_size)
        return cls(
            grammar=grammar,
            matcher=matcher,
            thinking=params.thinking,
            blank=blank,
            allowed=allowed,
            never=np.unique([ids[0] for ids in params.bad_token_ids if len(ids) == 1]).astype(np.int64),
            bad=_by_token_before(params.bad_token_ids),
            ends=np.array(sorted(ends), np.int64) if params.min_tokens else None,
            min_tokens=params.min_tokens,
            marks=(marks := frozenset(added.intersection(() if params.thinking is None else params.thinking.close))),
            reads_text=bool(grammar and grammar.after_texts) or (params.thinking is not None and not marks),
            token_bytes=token_bytes,
            greedy=greedy,
            discard=discard,
            grew=grew,
            words=-(-vocab_size // 32),
        )

    def constraint(self) -> Constraint:
        """Of a sequence that has no token yet."""
        return Constraint(self)


class Constraint:
    """Where one sequence is in its rules.

    Attributes:
        error: why the sequence cannot go on.
        complete: whether it ends here.
        suspect: tokens whose CPU is measured, and whose masks are made apart.
    """

    __slots__ = (
        "_ahead", "_in_thought", "_left", "_matcher", "_run", "_spent", "_tail", "complete", "error", "rules",
        "suspect",
    )  # fmt: skip

    def __init__(self, rules: RequestRules) -> None:
        self.rules = rules
        self._matcher: LLMatcher | None = None
        self._ahead: tuple[Making, int] | None = None
        self.error: str | None = None
        self.complete = False
        self.suspect = 0
        self._spent = 0.0
        self._run: WhitespaceRun | None = None
        self._tail = b""
        thinking, grammar = rules.thinking, rules.grammar
        self._left = 0 if thinking is None else thinking.budget
        self._in_thought = thinking is not None and not thinking.open_tokens
        if grammar is not None and not grammar.after_tokens and not grammar.after_texts:
            self._begin()
            self._look_at_end()

    def copy(self) -> Constraint:
        """The same, to go its own way."""
        other = Constraint.__new__(Constraint)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other._matcher, other._ahead = self.matcher and self.matcher.deep_copy(), None
        other._run = self._run and self._run.copy()
        return other

    @property
    def matcher(self) -> LLMatcher | None:
        """Of the grammar, once it has begun. No thread works with it any more when this returns."""
        if self._ahead is not None:
            self._ahead[0].wait()
        return self._matcher

    @property
    def is_active(self) -> bool:
        """Whether the grammar has begun: the next token depends on all before it."""
        return self._matcher is not None

    @property
    def needs_mask(self) -> bool:
        """Whether rows of the sequence have a mask."""
        return self._matcher is not None or self.rules.allowed is not None

    def push(self, output: list[int], start: int = 0) -> None:
        """Take in the newest token.

        Args:
            output: tokens that end with it.
            start: those from there on were generated.
        """
        token = output[-1]
        data = self.rules.token_bytes(token)
        self.made_ahead()  # that was for this one
        if self.rules.reads_text:
            self._tail = (self._tail + data)[-1024:]
        if self.matcher is not None:
            self._consume(token, data)
        elif self.rules.grammar is not None and not self.complete:
            self._look_for_beginning(self.rules.grammar, token, data)
        if self.rules.thinking is not None:
            self._think(self.rules.thinking, output, start)

    def forced(self, output: list[int], start: int) -> list[int]:
        """Tokens that follow whatever the model says; they are to be pushed before the next call.

        Args:
            output, start: as in `push`.
        """
        thinking = self.rules.thinking
        if self.error is not None or self.complete:
            return []
        if thinking is not None and self._in_thought and self._left <= 0:
            rest = _rest(thinking.close, output[start:])
            if self._takes(rest):
                self._in_thought = False
                return list(rest)
        if self.matcher is None or not FORCING:
            return []
        return self._permitted(self._timed(self.matcher.compute_ff_tokens), output[start:])

    def banned(self, output: list[int], start: int) -> list[int]:
        """Tokens that would complete a sequence that is not to be; `output` and `start` as in `push`."""
        room = len(output) - start
        may_end = self.rules.bad.get(output[-1], ()) if room > 0 else ()
        return [bad[-1] for bad in may_end if len(bad) - 1 <= room and _ends_with(output, bad[:-1])]

    def permits(self, token: int) -> bool:
        """Whether its grammar, if it has begun, lets a token follow; lists of tokens are not looked at."""
        return self._takes((token,))

    def fail(self, sentence: str) -> None:
        """Have the sequence end with an error."""
        self.error = self.error or sentence

    def make_ahead(self, making: Making, place: int) -> LLMatcher:
        """Have its grammar's mask be made by a thread, at a place of its masks; the matcher is the thread's now."""
        assert self._matcher is not None
        self._ahead = making, place
        return self._matcher

    def made_ahead(self) -> Uint32 | None:
        """Such a mask, once; None where there is none."""
        if self._ahead is None:
            return None
        (making, place), self._ahead = self._ahead, None
        making.wait()
        return None if making.failed else making.masks[place]

    def make_mask(self, address: int, size: int) -> float:
        """Make its grammar's mask in this thread, of so many bytes; returns the seconds of CPU that took."""
        matcher, debt = self.matcher, self.rules.debt
        before = debt.seconds
        assert matcher is not None
        self._timed(matcher.unsafe_compute_mask_ptr, address, size)
        return debt.seconds - before

    def spend(self, seconds: float) -> None:
        """Note seconds that were spent in its grammar."""
        self._spent += seconds
        if self._spent > TOLD:
            self.rules.grew(self._spent)
            self._spent = 0.0

    def check_matcher(self) -> None:
        """Look whether making its mask failed."""
        if self.matcher is not None and self.matcher.is_error():
            self._failed("cannot go on with its grammar", self.matcher.get_error())

    def exclude(self, mask: Uint32, banned: Int64) -> None:
        """Take from a mask the tokens that are not drawn here, whatever the grammar says; it may become empty."""
        if self.rules.allowed is not None:
            mask &= self.rules.allowed
        if len(banned):
            _clear(mask, banned)

    def prefer(self, mask: Uint32, num_output: int) -> None:
        """Take from a mask, unless it becomes empty, more white space, and the end before `min_tokens`.

        Args:
            num_output: tokens generated so far.
        """
        rules = self.rules
        if self._run is not None and self._run.is_too_long and rules.blank is not None:
            _keep_some(mask, mask & ~rules.blank)
        if rules.ends is not None and num_output < rules.min_tokens:
            without = mask.copy()
            _clear(without, rules.ends)
            _keep_some(mask, without)

    # ---- one token --------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        assert self.rules.matcher is not None, "a grammar comes with its matcher"
        self._matcher = self.rules.matcher.deep_copy()
        self._run = None if self.rules.blank is None else WhitespaceRun()
        self._tail = b""

    def _look_for_beginning(self, grammar: Grammar, token: int, data: bytes) -> None:
        if token in grammar.after_tokens:
            self._begin()
            self._look_at_end()
            return
        for text in grammar.after_texts:
            wanted = text.encode()
            place = self._tail.rfind(wanted, max(0, len(self._tail) - len(data) - len(wanted) + 1))
            if place >= 0 and self._begin_with(self._tail[place + len(wanted) :]):
                return

    def _begin_with(self, rest: bytes) -> bool:
        """Begin where a token has more than the text that begins the grammar; False where that does not fit."""
        before = self._tail
        self._begin()
        assert self.matcher is not None
        if rest and not self._push_text(self.matcher, rest):
            self._matcher, self._run, self._tail = None, None, before
            return False
        self._look_at_end()
        return True

    def _push_text(self, matcher: LLMatcher, text: bytes) -> bool:
        if self._run is not None:
            self._run.push(text)
        tokens = self.rules.greedy(text)
        return matcher.try_consume_tokens(tokens) == len(tokens)

    def _consume(self, token: int, data: bytes) -> None:
        matcher = self.matcher
        assert matcher is not None
        self.rules.debt.seconds = max(0.0, self.rules.debt.seconds - SLOW_TOKEN)
        consumed = self._timed(matcher.consume_token, token)
        self.suspect = max(0, self.suspect - 1)
        if not consumed:
            self._failed("cannot go on with its grammar", matcher.get_error())
            return
        if self._run is not None:
            self._run.push(data)
        self._look_at_end()

    def _timed(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Do something with the matcher. A sequence that takes too much CPU ends.

        Wall time, which costs nothing to read, would blame it for what others do on the machine. It makes suspects.
        """
        clock = time.thread_time if self.suspect else time.perf_counter
        begin = clock()
        result = work(*arguments, **named)
        seconds = clock() - begin
        self.spend(seconds)
        if self.suspect:
            self.rules.debt.seconds += seconds
            if self.rules.debt.seconds > SLOW_REQUEST:
                self.fail("this sequence's grammar is too complex: its tokens take too long to check")
        if seconds > SLOW_TOKEN:
            self.suspect = SUSPECTED
        return result

    def _look_at_end(self) -> None:
        """Whether the grammar is complete, or has failed."""
        if self.matcher is None or not self.matcher.is_stopped():
            return
        if self.matcher.is_error() or self.matcher.stop_reason() not in _ENDED_WELL:
            self._failed("cannot go on with its grammar", self.matcher.get_error() or self.matcher.stop_reason())
            return
        self.complete = self.rules.grammar is None or not self.rules.grammar.again
        self._matcher, self._run, self._tail = None, None, b""

    def _failed(self, what: str, message: str) -> None:
        self.rules.discard()
        self.fail(f"this sequence {what}: {told(message)}")
        self._matcher = None

    # ---- thinking ---------------------------------------------------------------------------------------------

    def _think(self, thinking: Thinking, output: list[int], start: int) -> None:
        if not self._in_thought:
            opened = thinking.open_tokens
            self._in_thought = bool(opened) and len(output) - start >= len(opened) and _ends_with(output, opened)
            return
        self._left -= 1
        if self._is_closed(thinking, output):
            self._in_thought = False

    def _is_closed(self, thinking: Thinking, output: list[int]) -> bool:
        """Whether the model has closed it: with the marker alone, or with the same text."""
        if self.rules.marks:
            return output[-1] in self.rules.marks
        text = b"".join(map(self.rules.token_bytes, thinking.close)).strip()
        return _ends_with(output, thinking.close) or (bool(text) and self._tail.rstrip().endswith(text))

    def _permitted(self, tokens: list[int], output: list[int]) -> list[int]:
        """Those before the first that `allowed_token_ids` or bad words exclude: there the mask says what may follow."""
        rules = self.rules
        if rules.allowed is None and not len(rules.never) and not rules.bad:
            return tokens
        for place, token in enumerate(tokens):
            shut_out = rules.allowed is not None and not int(rules.allowed[token // 32]) >> token % 32 & 1
            if shut_out or token in rules.never or token in self.banned(output, 0):
                return tokens[:place]
            output.append(token)
        return tokens

    def _takes(self, tokens: tuple[int, ...]) -> bool:
        """Whether the grammar, if it has begun, lets these follow."""
        return self.matcher is None or self.matcher.validate_tokens(list(tokens)) == len(tokens)


def _by_token_before(sequences: Iterable[list[int]]) -> dict[int, list[tuple[int, ...]]]:
    found: dict[int, list[tuple[int, ...]]] = {}
    for ids in sequences:
        if len(ids) > 1:
            found.setdefault(ids[-2], []).append(tuple(ids))
    return found


def _nothing() -> None:
    pass


def _untold(seconds: float) -> None:
    pass


def _no_bytes(token: int) -> bytes:
    return b""


def _no_tokens(text: bytes) -> list[int]:
    return []


def _rest(end: tuple[int, ...], tokens: list[int]) -> tuple[int, ...]:
    """What is left of an end, of which the last tokens may be the beginning: a model may spell it on its own."""
    begun = next(count for count in range(len(end) - 1, -1, -1) if _ends_with(tokens, end[:count]))
    return end[begun:]


def _ends_with(tokens: list[int], end: tuple[int, ...]) -> bool:
    return not end or tokens[-len(end) :] == list(end)


# ---- bits of a mask -----------------------------------------------------------------------------------------------


def mask_of(tokens: Iterable[int], size: int) -> Uint32:
    """A mask that allows these tokens of a vocabulary."""
    bits = np.zeros(-(-size // 32) * 32, np.uint8)
    bits[np.array([*tokens], np.int64)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def _clear(mask: Uint32, tokens: Int64) -> None:
    np.bitwise_and.at(mask, tokens // 32, ~(np.uint32(1) << (tokens % 32).astype(np.uint32)))


def _keep_some(mask: Uint32, narrower: Uint32) -> None:
    """Take the narrower one, unless it is empty."""
    if narrower.any():
        mask[:] = narrower
