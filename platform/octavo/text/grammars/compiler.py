"""Compiles grammars beside everything else: few threads, bounded work, bounded memory.

A usual schema takes 1 ms and is kept, so that the next request with it takes none. What a hostile one can take is
bounded by its length (`octavo.constraint.MAX_GRAMMAR`), by llguidance's limits on the work of a compile and of a mask,
and by numbers that these limits forget (`cost`). Deeply nested grammars recurse, so the threads have large stacks.
The first mask is made here, too, and what is forced at the beginning: copies have both, and a grammar whose masks are
beyond limits, or slow, is refused before it runs. In the engine's thread that took 80 ms for each of 16 sequences.

    submit ──> quick lane ── compiled ──> done
                   │ it is not light (`cost.is_light`), or takes more than a light one's fuel
                   └──> slow lane: one thread of low priority, all of the fuel ──> done

In each lane askers take turns (`lanes`), whoever has had the least CPU time first. So nobody with a usual schema waits
behind a hostile one. Of 876 schemas of MaskBench 866 compile in the quick lane: in
1.9 ms (p90), 8 at most. Hostile ones keep it for 18 ms (p99) before they leave it; with all of the fuel they take 350.
Fuel decides whether a compile ends and nothing else: the matcher is the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from octavo.constraint import Grammar
from octavo.errors import BadRequest, OctavoError, Overloaded
from octavo.text.grammars.blame import blamed
from octavo.text.grammars.cost import MAX_LIGHT, check_cost, schemas
from octavo.text.grammars.lanes import Lane
from octavo.text.grammars.tokens import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

THREADS = 2
"""Compiles at once. They do not hold the GIL."""

QUEUED = 256
"""Compiles that may wait."""

SLOW_QUEUED = 64
"""Compiles that take long and may wait: up to 0.4 s of CPU each."""

SLOW_NICE = 10
"""Of the thread for those. Beside eight streams on two cores, one that compiles all the time makes a step 24 to 31 ms
instead of 16 with the usual priority; with this one nothing was seen."""

LIGHT_FUEL = 10_000
"""Of llguidance's work for a light grammar, and its symbols."""

CACHED_BYTES = 2**27
"""Memory of kept grammars, estimated."""

LARGEST = CACHED_BYTES // 2
"""Of one of them. What is larger, or has become so, is compiled for each request."""

_BYTES_PER_CHARACTER, _BYTES_PER_SECOND = 128, 2**28
"""What a grammar's text adds to its memory, and what the CPU time of its compile and of its masks tells of the states
that were found: of 260 hostile grammars 220 MB a second at most, of usual ones 3. Two `multipleOf` of 9,974 take 9 MB,
a constant of 10,000 letters 5, an object of 200 properties 1."""

_BASE_BYTES = 2**16
"""Memory of the smallest grammar, half of it tables for bytes."""

APART = 1024
"""Grammars of which it is remembered that a sequence failed."""

SLOW_MASK = 0.1
"""Seconds of CPU for the first mask and the text that is forced; usual ones take 20 us."""

_MESSAGE = 300
"""Characters of llguidance's message that a client is told."""

Compiled: TypeAlias = "LLMatcher | OctavoError"
"""A matcher at its beginning, to be copied for each sequence, or what is wrong with the grammar."""

_Asked: TypeAlias = tuple[Grammar, Callable[[Compiled], None], str]
"""What to compile, whom to tell, and who asks."""


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
        self._lock = threading.Lock()
        self._quick: Lane[_Asked] = Lane(
            self._compile_quickly, _refuse, threads=THREADS, waiting=QUEUED, what="grammars to be compiled"
        )
        self._slow: Lane[_Asked] = Lane(
            self._compile_slowly,
            _refuse,
            threads=1,
            waiting=SLOW_QUEUED,
            what="grammars that take long to compile",
            nice=SLOW_NICE,
        )

    def find(self, grammar: Grammar) -> LLMatcher | None:
        """The matcher of a grammar that is kept."""
        with self._lock:
            found = self._kept.get(grammar.source)
            if found is None:
                return None
            self._kept.move_to_end(grammar.source)
            return found[0]

    def submit(self, grammar: Grammar, done: Callable[[Compiled], None], asker: str = "") -> None:
        """Compile in a thread, which calls `done`, when it is the asker's turn.

        Raises:
            Overloaded: too many wait.
        """
        (self._quick if len(grammar.source) <= MAX_LIGHT else self._slow).put((grammar, done, asker), asker)

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
        with self._lock:
            self._apart[_digest(grammar)] = None
            if len(self._apart) > APART:
                self._apart.popitem(last=False)
            self._drop(grammar.source)

    def grew(self, grammar: Grammar, seconds: float) -> None:
        """A sequence spent so many seconds in a grammar, whose lexer then knows more states, of all copies together."""
        with self._lock:
            if (found := self._kept.get(grammar.source)) is not None:
                self._put(grammar.source, found[0], found[1] + int(_BYTES_PER_SECOND * seconds))

    def _compile_quickly(self, asked: _Asked) -> None:
        grammar, done, asker = asked
        if (result := self._compiled(grammar, light_limits())) is not None:
            done(result)
            return
        try:
            self._slow.put(asked, asker)
        except Overloaded as error:
            done(error)

    def _compile_slowly(self, asked: _Asked) -> None:
        grammar, done, _ = asked
        result = self._compiled(grammar, limits())
        assert result is not None
        done(result)

    def _compiled(self, grammar: Grammar, within: LLParserLimits) -> Compiled | None:
        """None: that takes more than the limits of light grammars allow, or is to be refused where it may take more."""
        try:
            if (found := self.find(grammar)) is not None:
                return found
            self.vocabulary.trie()
            begin = time.thread_time()
            matcher = self._make(grammar, within)
        except BadRequest as error:
            return _blamed(error, grammar)
        except OctavoError as error:
            return error
        except Exception as error:
            return OctavoError(f"the grammar cannot be compiled: {type(error).__name__}")
        if matcher is not None:
            self._keep(grammar, matcher, time.thread_time() - begin)
        return matcher

    def _make(self, grammar: Grammar, within: LLParserLimits) -> LLMatcher | None:
        from llguidance import LLMatcher

        is_quick = within is light_limits()
        if not check_cost(grammar).is_light and is_quick:
            return None
        source = self.vocabulary.by_ids(grammar.source)
        matcher = LLMatcher(self.vocabulary.trie(), source, log_level=0, limits=within)
        if not matcher.is_error():
            begin = time.thread_time()
            matcher.compute_bitmask()  # without the GIL, which `compute_ff_tokens` holds: that finds its work done
            matcher.compute_ff_tokens()
            if time.thread_time() - begin > SLOW_MASK:
                raise BadRequest(f"{grammar.param} is too complex: a token takes too long to check", grammar.param)
            if not matcher.is_error():
                return matcher
        elif is_quick:
            return None
        raise BadRequest(f"{grammar.param}: {told(matcher.get_error())}", grammar.param)

    def _keep(self, grammar: Grammar, matcher: LLMatcher, seconds: float) -> None:
        with self._lock:
            if self._apart and _digest(grammar) in self._apart:
                return
            size = _BASE_BYTES + _BYTES_PER_CHARACTER * len(grammar.source) + int(_BYTES_PER_SECOND * seconds)
            self._put(grammar.source, matcher, size)

    def _put(self, source: str, matcher: LLMatcher, size: int) -> None:
        self._drop(source)
        if size > LARGEST:
            return
        self._kept[source] = matcher, size
        self._bytes += size
        while self._bytes > CACHED_BYTES:
            self._drop(next(iter(self._kept)))

    def _drop(self, source: str) -> None:
        _, size = self._kept.pop(source, (None, 0))
        self._bytes -= size


@cache
def limits() -> LLParserLimits:
    """Of what llguidance allows by default a third for a compile, all for a mask (14 ms), and a fifth of the memory."""
    return _limits(300_000, 200_000)


@cache
def light_limits() -> LLParserLimits:
    """The same for masks, and for a compile what a light grammar takes."""
    return _limits(LIGHT_FUEL, LIGHT_FUEL)


def _limits(fuel: int, symbols: int) -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=fuel,
        step_lexer_fuel=200_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=symbols,
        verbose_errors=False,
    )


def check_grammar(grammar: Grammar, within: LLParserLimits) -> None:
    """Refuse what does not compile; for threads with large stacks.

    Raises:
        BadRequest: its sentence begins with the grammar's field.
    """
    from llguidance import LLMatcher

    check_cost(grammar)
    wrong, said = LLMatcher.validate_grammar_with_warnings(grammar.source, limits=within)
    if wrong:
        raise BadRequest(f"{grammar.param}: {told(said[-1])}", grammar.param)


def _blamed(error: BadRequest, grammar: Grammar) -> BadRequest:
    """The error with a path into the schema that it is about, if a schema of the grammar has it alone, too."""

    for schema in schemas(grammar.source):
        given = dict(schema) if isinstance(schema, dict) else {}
        options = given.pop("x-guidance", {})

        def check(part: dict[str, Any], options: Any = options) -> None:
            source = f"%llguidance {{}}\nstart: %json {json.dumps({**part, 'x-guidance': options})}\n"
            check_grammar(Grammar(source=source, param=grammar.param), light_limits())

        if (found := blamed(error, given, check)) is not error:
            return found
    return error


def _refuse(asked: _Asked, error: Overloaded) -> None:
    _, done, _ = asked
    done(error)


def _digest(grammar: Grammar) -> bytes:
    return hashlib.blake2b(grammar.source.encode(errors="surrogatepass"), digest_size=16).digest()


_LINES = re.compile(r"\n +\d+ \| ")
_UNDERLINE = re.compile(r"\n *\^+\n")


def told(message: str) -> str:
    """llguidance's message in one line, without the state and the grammar that it prints after it."""
    if message.startswith("NoExtension"):
        return "no text keeps to it"
    message = message.partition("\n<state>")[0].partition("\n<non-verbose")[0]
    message, _, _ = message.partition("; following special tokens are available")
    message = _UNDERLINE.sub("\n", _LINES.split(message)[0])
    where = re.match(r"(?:at )?(\d+)\((\d+)\): ", message)
    if where and "failed to compile JSON schema" in message:  # a schema's error has a path, which tells more than lines
        message = message[where.end() :]
    elif where:
        message = f"{message[where.end() :]} (line {where[1]}, column {where[2]})"
    message = " ".join(message.split())
    return message if len(message) <= _MESSAGE else message[: _MESSAGE - 3] + "..."
