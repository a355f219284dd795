"""Compiles grammars beside everything else: few threads, bounded work, bounded memory.

A usual schema takes 1 ms and is kept, so that the next request with it takes none. What a hostile one can take is
bounded by its length (`octavo.constraint.MAX_GRAMMAR`), by llguidance's limits on the work of a compile and of a mask,
and by two numbers that these limits forget (`cost`). Deeply nested grammars recurse, so the threads have large stacks.
The first mask is made here, too: a grammar whose masks are beyond limits, or slow, is refused before it runs.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from octavo.constraint import Grammar
from octavo.errors import BadRequest, OctavoError, Overloaded
from octavo.text.grammars.cost import check_cost
from octavo.text.grammars.tokens import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

THREADS = 2
"""Compiles at once. They do not hold the GIL."""

QUEUED = 256
"""Compiles that may wait."""

IDLE = 30.0
"""Seconds that a thread waits for more before it ends."""

CACHED_BYTES = 2**26
"""Memory of kept grammars, estimated."""

_STACK = 2**28
"""Bytes of a thread's stack, of which the system gives what is touched: a chain of 12,000 rules recurses."""

_BASE_BYTES, _BYTES_PER_CHARACTER, _BYTES_PER_SECOND = 2**16, 64, 2**26
"""Memory of a compiled grammar: what it has at least, what its text adds, and what the CPU time of its compile tells of
states that were found: 102 characters with a `multipleOf` of 32,749 take 0.3 s and 15 MB."""

APART = 1024
"""Grammars of which it is remembered that a sequence failed."""

SLOW_MASK = 0.1
"""Seconds of CPU for the first mask; usual ones take 20 us."""

_MESSAGE = 300
"""Characters of llguidance's message that a client is told."""

Compiled: TypeAlias = "LLMatcher | OctavoError"
"""A matcher at its beginning, to be copied for each sequence, or what is wrong with the grammar."""


class Compiler:
    """Makes matchers of grammars; safe to use from any thread.

    Args:
        vocabulary: of the model whose tokens are to match.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._kept: OrderedDict[str, tuple[LLMatcher, int]] = OrderedDict()  # with its bytes
        self._bytes = 0
        self._apart: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: deque[tuple[Grammar, Callable[[Compiled], None]]] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def find(self, grammar: Grammar) -> LLMatcher | None:
        """The matcher of a grammar that is kept."""
        with self._changed:
            found = self._kept.get(grammar.source)
            if found is None:
                return None
            self._kept.move_to_end(grammar.source)
            return found[0]

    def submit(self, grammar: Grammar, done: Callable[[Compiled], None]) -> None:
        """Compile in a thread, which calls `done`.

        Raises:
            Overloaded: too many wait.
        """
        with self._changed:
            if len(self._waiting) >= QUEUED:
                raise Overloaded(f"{len(self._waiting)} grammars wait to be compiled; at most {QUEUED} may", 1.0)
            self._waiting.append((grammar, done))
            if len(self._waiting) > self._idle and len(self._threads) < THREADS:
                self._threads.append(deep_thread(self._work))
            self._changed.notify()

    def compile(self, grammar: Grammar) -> LLMatcher:
        """Compile and wait for it.

        Raises:
            BadRequest: what is wrong with the grammar.
            ModelError: this model's tokenizer cannot be constrained.
        """
        if (found := self.find(grammar)) is not None:
            return found
        results: list[Compiled] = []
        ready = threading.Event()

        def done(result: Compiled) -> None:
            results.append(result)
            ready.set()

        self.submit(grammar, done)
        ready.wait()
        if isinstance(results[0], OctavoError):
            raise results[0]
        return results[0]

    def discard(self, grammar: Grammar) -> None:
        """Share a grammar no longer: one of its copies failed.

        Copies share the lexer's states, and where those are too many all copies fail. So from now on each request has
        a matcher of its own.
        """
        with self._changed:
            self._apart[_digest(grammar)] = None
            if len(self._apart) > APART:
                self._apart.popitem(last=False)
            if (found := self._kept.pop(grammar.source, None)) is not None:
                self._bytes -= found[1]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._waiting:
                    if not self._changed.wait(IDLE) and not self._waiting:
                        self._idle -= 1
                        self._threads.remove(threading.current_thread())
                        return
                self._idle -= 1
                grammar, done = self._waiting.popleft()
            done(self._compiled(grammar))

    def _compiled(self, grammar: Grammar) -> Compiled:
        try:
            if (found := self.find(grammar)) is not None:
                return found
            self.vocabulary.trie()
            begin = time.thread_time()
            matcher = self._make(grammar)
        except OctavoError as error:
            return error
        except Exception as error:
            return OctavoError(f"the grammar cannot be compiled: {type(error).__name__}")
        self._keep(grammar, matcher, time.thread_time() - begin)
        return matcher

    def _make(self, grammar: Grammar) -> LLMatcher:
        from llguidance import LLMatcher

        check_cost(grammar)
        matcher = LLMatcher(self.vocabulary.trie(), grammar.source, log_level=0, limits=limits())
        if not matcher.is_error():
            first, begin = matcher.deep_copy(), time.thread_time()
            first.compute_bitmask()
            if time.thread_time() - begin > SLOW_MASK:
                raise BadRequest(f"{grammar.param} is too complex: a token takes too long to check", grammar.param)
            if not first.is_error():
                return matcher
            matcher = first
        raise BadRequest(f"{grammar.param}: {told(matcher.get_error())}", grammar.param)

    def _keep(self, grammar: Grammar, matcher: LLMatcher, seconds: float) -> None:
        size = _BASE_BYTES + _BYTES_PER_CHARACTER * len(grammar.source) + int(_BYTES_PER_SECOND * seconds)
        with self._changed:
            if self._apart and _digest(grammar) in self._apart:
                return
            _, before = self._kept.pop(grammar.source, (None, 0))
            self._kept[grammar.source] = matcher, size
            self._bytes += size - before
            while self._bytes > CACHED_BYTES and len(self._kept) > 1:
                _, (_, size) = self._kept.popitem(last=False)
                self._bytes -= size


@cache
def limits() -> LLParserLimits:
    """Of what llguidance allows by default a third for a compile, all for a mask (14 ms), and a fifth of the memory."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=300_000,
        step_lexer_fuel=200_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _digest(grammar: Grammar) -> bytes:
    return hashlib.blake2b(grammar.source.encode(errors="surrogatepass"), digest_size=16).digest()


_begin_lock = threading.Lock()


def deep_thread(work: Callable[[], None]) -> threading.Thread:
    """Begin a thread in which grammars may be compiled: in one with a usual stack, a deep one ends the process."""
    with _begin_lock:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=work, name="octavo-grammars", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return thread


def told(message: str) -> str:
    """llguidance's message in one line, without the state and the grammar that it prints after it."""
    if message.startswith("NoExtension"):
        return "no text keeps to it"
    message = message.partition("\n<state>")[0].partition("\n<non-verbose")[0]
    message, _, _ = message.partition("; following special tokens are available")
    where = re.match(r"(?:at )?(\d+)\((\d+)\): ", message)
    if where:
        message = f"{message[where.end() :]} (line {where[1]}, column {where[2]})"
    message = " ".join(message.split())
    return message if len(message) <= _MESSAGE else message[: _MESSAGE - 3] + "..."
