"""The same engine for servers: its loop in one thread, a queue in, a stream per request out."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from octavo.config import EngineConfig
from octavo.constraint import Grammar
from octavo.engine.engine import Engine
from octavo.engine.gathered import Gathered, is_gathered
from octavo.engine.patience import Silence
from octavo.engine.stats import EngineStats
from octavo.errors import EngineDead, EngineStopped, OctavoError
from octavo.models.source_spec import read_spec
from octavo.request import BELOW_ALL, Request, SequenceUpdate
from octavo.source import Source, resolve_source
from octavo.text.grammars.compiler import Compiled, Compiler
from octavo.text.grammars.tokens import Vocabulary
from octavo.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from octavo.execution.ranks import Launch

logger = logging.getLogger(__name__)

_HAND_OVER = 0.001
"""Most seconds that the engine waits for its listeners' loops to take a step's updates. Waiting releases the GIL;
without it very short steps starve the event loop (64 steps of 0.1 ms were delivered as one batch)."""

_TRIAL_HAND_OVER = 1.0
"""The same after a step of a trial (`isolation`). If the next step ends the process, the updates before it must have
been sent, or the wrong request is blamed."""

_SOON, _GATHER = 0.001, 0.0003
"""Seconds: where a request comes so soon after the engine became idle, the engine waits so long for others to run with
it. Otherwise each request would have a step and a message of its own where steps take next to no time."""

_AUDIT_EVERY = 10.0  # seconds between integrity checks of an idle engine; one takes 1 ms per 2,000 blocks

_LOOK = 0.02  # seconds between two looks whether an engine that is to finish has


class Listener(Protocol):
    """Where the updates of one or many requests go; its methods run on its loop.

    Attributes:
        loop: the consumer's event loop.
    """

    loop: asyncio.AbstractEventLoop

    def updated(self, updates: list[SequenceUpdate]) -> None:
        """What one step did to this listener's requests: one call per step, whatever their number."""
        ...

    def failed(self, request_id: str, error: Exception) -> None:
        """A request was refused (`BadRequest`, `Overloaded`), or the engine has stopped (`EngineDead`)."""
        ...


class Finished(EngineDead):
    """The engine had nothing left to do, and was to end then."""


News = dict[Listener, list[SequenceUpdate]]
"""What each listener is to be told."""

Command: TypeAlias = "tuple[str, int | None, Request | None, Listener | None, LLMatcher | None]"
"""A request's id, and with it an index or None to abort that, or the request itself, its listener and what its grammar
was compiled to."""

T = TypeVar("T")


class Call(Future[Any]):
    """Something to do with the engine between two steps."""

    def __init__(self, do: Callable[[Engine], object]) -> None:
        super().__init__()
        self._do = do

    def run(self, engine: Engine) -> None:
        """Do it, unless nobody waits for it any more."""
        if self.set_running_or_notify_cancel():
            try:
                self.set_result(self._do(engine))
            except Exception as error:
                self.set_exception(error)


@dataclass(slots=True, eq=False)
class Stream:
    """One request's way back: filled on the consumer's loop, emptied by the consumer."""

    loop: asyncio.AbstractEventLoop
    error: Exception | None = None
    _updates: list[SequenceUpdate] = field(default_factory=list)
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    def updated(self, updates: list[SequenceUpdate]) -> None:
        self._updates += updates
        self._ready.set()

    def failed(self, request_id: str, error: Exception) -> None:
        self.error = self.error or error
        self._ready.set()

    async def take(self) -> list[SequenceUpdate]:
        """Whatever has come since the last call; waits for something.

        Raises:
            what `failed` was told, once all updates before it are taken.
        """
        while not self._updates:
            if self.error is not None:
                raise self.error
            self._ready.clear()
            await self._ready.wait()
        updates, self._updates = self._updates, []
        return updates


class AsyncEngine:
    """An `Engine` in a thread of its own.

    A consumer that is slow gets several steps' updates at once; one that is quick gets each step's as it comes.

    Attributes:
        tokenizer: of the model, where it was loaded here.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None = None) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._commands: queue.SimpleQueue[Command | Call | None] = queue.SimpleQueue()
        self._compiling = Compiling(self._compiled)
        self._listeners: dict[str, Listener] = {}
        self._gathered = Gathered()
        self._error: BaseException | None = None
        self._beat = time.monotonic()
        self._silence = Silence()
        self._audited = self._busy = time.monotonic()
        self._quiet: float | None = None  # seconds without work after which it is to end
        self._giving_up, self._gone = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls, source: str, config: EngineConfig, *, progress: bool = False, launch: Launch | None = None
    ) -> AsyncEngine:
        """Load a model and start its thread; `launch` as in `Engine.load`.

        What grammars need of its tokenizer is made beside that: later it would pause streams for as long.

        Raises:
            ModelError, ConfigError: it cannot be loaded, or not with these settings.
        """
        return cls.load_found(resolve_source(source, config.runner), config, progress=progress, launch=launch)

    @classmethod
    def load_found(
        cls,
        found: Source,
        config: EngineConfig,
        *,
        progress: bool = False,
        launch: Launch | None = None,
        tokens: Source | None = None,
        like: AsyncEngine | None = None,
    ) -> AsyncEngine:
        """The same of a source that was found.

        Args:
            tokens: the source of its tokenizer, which the config names; None: the same.
            like: an engine whose tokenizer, and what grammars need of it, this one is to have.
        """
        if like is not None and like.tokenizer is not None:
            engine = Engine.load(found, config, like.tokenizer, progress=progress, launch=launch, first=tokens)
            engine.compiler = like.engine.compiler
            return cls(engine, like.tokenizer)
        tokenizer = load_tokenizer(tokens or found)
        with ThreadPoolExecutor(1, "octavo-vocabulary") as beside:
            generates = config.rehearsal is None and read_spec(found).generates
            made = beside.submit(_vocabulary, found, tokenizer) if generates else None
            engine = Engine.load(found, config, tokenizer, progress=progress, launch=launch, first=tokens)
            if made is not None and made.result().size == engine.limits.vocab_size:
                engine.compiler = Compiler(made.result())
        return cls(engine, tokenizer)

    async def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        """Run a request; yields lists of updates until all of its sequences have ended.

        Closing the generator, or cancelling the task that reads it, aborts the request.

        Raises:
            BadRequest, Overloaded: before the first list.
            EngineDead: the engine stopped.
        """
        stream = Stream(asyncio.get_running_loop())
        open_sequences = request.params.num_sequences
        self.submit(request, stream)
        try:
            while open_sequences:
                updates = await stream.take()
                open_sequences -= sum(update.finish_reason is not None for update in updates)
                yield updates
        finally:
            if open_sequences and stream.error is None:
                self.abort(request.request_id)

    def submit(self, request: Request, listener: Listener) -> None:
        """Run a request and tell the listener of it; may be called from any thread.

        One with a grammar that is not known comes into the queue when that is compiled. Others pass it meanwhile.

        Raises:
            EngineDead: the engine has stopped or is stuck.
        """
        self.check_health()
        self.engine.arrives(request.request_id, "arrive")
        grammar, compiler = request.params.grammar, self.engine.compiler
        if grammar is None or compiler is None:
            self._command((request.request_id, None, request, listener, None))
        else:
            self.engine.arrives(request.request_id, "compile")
            self._compiling.begin(compiler, grammar, request, listener)

    def _compiled(self, command: Command) -> None:
        self.engine.arrives(command[0], "compiled")
        self._command(command)

    def _command(self, command: Command) -> None:
        self._commands.put(command)
        if (request := command[2]) is not None and request.priority < BELOW_ALL:
            self.engine.hurry[0] = 1  # the step under way need not end first

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its n sequences, before the next step; may be called from any thread."""
        self._compiling.drop(request_id, index)
        self._commands.put((request_id, index, None, None, None))

    def call(self, do: Callable[[Engine], T]) -> Future[T]:
        """Have something done in the engine's thread, before the next step; may be called from any thread.

        What it returns or raises is in the future, which is cancelled where the engine stops before. It is to take no
        more than a few milliseconds.
        """
        call = Call(do)
        self._commands.put(call)
        if not self._thread.is_alive():  # nobody empties the queue any more
            call.cancel()
        return call

    def check_health(self) -> None:
        """Raise EngineDead if the thread died, or a step takes far longer than it should (`engine.patience`).

        To be called every second while somebody waits for the engine; of longer pauses a second counts.
        """
        if self._error is not None or not self._thread.is_alive():
            raise EngineDead(f"the engine has stopped: {self._error!r}")
        self.engine.executor.check_health()
        silent = self._silence.since(self._beat)
        if self.engine.has_work and silent > (patience := self.engine.patience):
            raise EngineDead(
                f"the engine has not finished a step for {silent:.0f} s; it should have within {patience:.0f} s"
            )

    @property
    def has_finished(self) -> bool:
        """Whether `finish` has ended it."""
        return isinstance(self._error, Finished)

    def stats(self) -> EngineStats:
        """Gauges and counters, now."""
        return self.engine.stats()

    def finish(self, quiet: float = 0.0, stays: threading.Event | None = None, *, keeps: bool = True) -> bool:
        """Give up the model once all requests have ended and none has come for some seconds; waits for that.

        Who comes later is told that the engine has stopped (EngineDead), and has not run.

        Args:
            quiet: these seconds.
            stays: set by who wants the engine to go on after all.
            keeps: what the cache holds is kept where it outlives the engine.

        Returns:
            whether it has ended: False where it stays.

        Raises:
            EngineDead: it had stopped by itself.
        """
        self._quiet, self._busy = quiet, time.monotonic()
        self.call(lambda engine: None)  # so that the thread looks
        while self._thread.is_alive():
            self._thread.join(_LOOK)
            if stays is not None and stays.is_set() and self._quiet is not None:
                self._quiet = None
                self._thread.join(1.0 if self._error is not None else _LOOK)  # it may have ended just before
                if self._thread.is_alive() and self._error is None:
                    return False
        if not isinstance(self._error, Finished):
            raise EngineDead(f"the engine has stopped: {self._error!r}")
        self._give_up(keeps=keeps)
        return True

    def close(self) -> None:
        """Stop the thread and give up the model; requests in flight end with EngineDead."""
        self._commands.put(None)
        self._thread.join()
        self._give_up()

    def _give_up(self, *, keeps: bool = True) -> None:
        """Give up the model once: `finish` waits in one thread where `close` is called in another."""
        with self._giving_up:
            if not self._gone:
                self._gone = True
                self.engine.close(keeps=keeps)

    # ---- the engine's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_commands():
                if self._has_finished():
                    self._error = Finished("the engine has finished")
                    return
                if self.engine.has_work:
                    trying = self.engine.isolation.trying
                    self._deliver(self.engine.step(), _TRIAL_HAND_OVER if trying else _HAND_OVER)
                elif self.engine.has_chores:
                    self.engine.do_chores()
                else:
                    self._audit()
            self._error = EngineDead("the engine was closed")
        except BaseException as error:
            logger.exception("the engine has stopped")
            self._error = error
        finally:
            self._fail_all()

    def _has_finished(self) -> bool:
        """Whether it is to end, and nothing has run or come for as long as was said."""
        if self._quiet is None or self.engine.has_work or self._compiling.active:
            self._busy = time.monotonic()
            return False
        return time.monotonic() - self._busy >= self._quiet

    def _take_commands(self) -> bool:
        """Carry out what callers asked for; sleeps while there is nothing to do. False when told to close."""
        news: News = {}
        gathers, since = not self.engine.has_work, time.monotonic()
        self.engine.hurry[0] = 0  # before the queue is emptied: who comes later sets it again
        try:
            while self._carry_out(self._next_command(news), news):
                self._beat = time.monotonic()
                if gathers and self.engine.has_work and self._beat - since < _SOON:
                    time.sleep(_GATHER)
                gathers = False
            return False
        except queue.Empty:
            self._beat = time.monotonic()
            return True
        finally:
            _hand_over(news, _HAND_OVER)

    def _next_command(self, news: News) -> Command | Call | None:
        """Raises queue.Empty where something else is to be done first."""
        seconds = None if self._quiet is None else _LOOK
        return self._commands.get(block=not (self._is_busy or news), timeout=seconds)

    @property
    def _is_busy(self) -> bool:
        return self.engine.has_work or self.engine.has_chores

    def _carry_out(self, command: Command | Call | None, news: News) -> bool:
        """Do what a caller asked for; False when told to close."""
        if command is None:
            return False
        if isinstance(command, Call):
            command.run(self.engine)
            return True
        request_id, index, request, listener, matcher = command
        if request is None or listener is None:
            self._sort(self.engine.abort(request_id, index), news)
        else:
            self._add(request, listener, matcher)
        return True

    def _add(self, request: Request, listener: Listener, matcher: LLMatcher | None) -> None:
        try:
            self.engine.add(request, matcher)
        except OctavoError as error:
            _call(listener, listener.failed, request.request_id, error)
        except Exception as error:  # a fault of ours that this request brings to light is not the others' end
            named = {"request_id": request.request_id}
            logger.exception("%s: cannot be taken in", request.request_id, extra=named)
            sentence = f"this request cannot be taken in: {type(error).__name__}; the server's log says more"
            _call(listener, listener.failed, request.request_id, OctavoError(sentence))
        else:
            self._listeners[request.request_id] = listener
            if is_gathered(request):
                self._gathered.requests.add(request.request_id)

    def _deliver(self, updates: Iterable[SequenceUpdate], seconds: float) -> None:
        """Hand updates to their listeners: one call per listener and step, not per token."""
        news: News = {}
        self._sort(updates, news)
        _hand_over(news, seconds)

    def _sort(self, updates: Iterable[SequenceUpdate], news: News) -> None:
        """Add updates to what their listeners are to be told; requests that have ended lose theirs."""
        if self._gathered.requests:
            updates = self._untold(updates)
        ended: list[str] = []
        for update in updates:
            news.setdefault(self._listeners[update.request_id], []).append(update)
            if update.finish_reason is not None and not self.engine.scheduler.sequences(update.request_id):
                ended.append(update.request_id)
        for request_id in ended:
            self._listeners.pop(request_id, None)
            self._gathered.requests.discard(request_id)

    def _untold(self, updates: Iterable[SequenceUpdate]) -> list[SequenceUpdate]:
        """What is to be told now, of a step's updates and of those that were kept.

        In a trial it is all: the next step may end the process.
        """
        gathered, now, told = self._gathered, time.monotonic(), list[SequenceUpdate]()
        for update in updates:
            told += gathered.add(update, now) if update.request_id in gathered.requests else (update,)
        return told + (gathered.all() if self.engine.isolation.trying else gathered.due(now))

    def _audit(self) -> None:
        if time.monotonic() - self._audited > _AUDIT_EVERY:
            self.engine.check_integrity()
            self._audited = time.monotonic()

    def _fail_all(self) -> None:
        stopped = EngineStopped(f"the engine has stopped: {self._error!r}")
        self._gathered.requests.clear()
        self._deliver(self._gathered.all(), _HAND_OVER)
        for request_id, listener in self._listeners.items():
            _call(listener, listener.failed, request_id, stopped)
        self._listeners.clear()
        error = EngineDead(str(stopped))
        while True:  # requests that were queued but never taken in
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                self._compiling.fail_all(error)
                return
            if isinstance(command, Call):
                command.cancel()
            elif command is not None and command[3] is not None:
                _call(command[3], command[3].failed, command[0], error)


def _vocabulary(source: Source, tokenizer: Tokenizer) -> Vocabulary:
    """A model's, with what takes long done."""
    vocabulary = Vocabulary(tokenizer, read_spec(source).vocab_size)
    vocabulary.prepare()
    return vocabulary


class Compiling:
    """Requests whose grammars are being compiled; nothing of the engine waits for them.

    Args:
        put: takes a request that can run.
    """

    def __init__(self, put: Callable[[Command], None]) -> None:
        self._put = put
        self._lock = threading.Lock()
        self._requests: dict[str, tuple[Request, Listener]] = {}
        self._stopped: Exception | None = None

    @property
    def active(self) -> bool:
        """Whether any is."""
        return bool(self._requests)

    def begin(self, compiler: Compiler, grammar: Grammar, request: Request, listener: Listener) -> None:
        """Pass a request on once its grammar is compiled, or tell its listener what is wrong."""
        if (found := compiler.find(grammar)) is not None:
            self._put((request.request_id, None, request, listener, found))
            return
        with self._lock:
            self._requests[request.request_id] = request, listener
        try:
            compiler.submit(grammar, lambda compiled: self._end(request, compiled), request.asker)
        except OctavoError as error:
            self._end(request, error)

    def drop(self, request_id: str, index: int | None) -> None:
        """Somebody aborts a request, or one of its sequences."""
        with self._lock:
            if index is None:
                self._requests.pop(request_id, None)

    def fail_all(self, error: Exception) -> None:
        """The engine has stopped: tell those that still wait, and those to come."""
        with self._lock:
            self._stopped, waiting, self._requests = error, self._requests, {}
        for request_id, (_, listener) in waiting.items():
            _call(listener, listener.failed, request_id, error)

    def _end(self, request: Request, compiled: Compiled) -> None:
        with self._lock:
            known, listener = self._requests.get(request.request_id, (None, None))
            if known is not request or listener is None:  # aborted, or it came again
                return
            del self._requests[request.request_id]
            failed = compiled if isinstance(compiled, OctavoError) else self._stopped
            if failed is None:
                self._put((request.request_id, None, request, listener, compiled))  # type: ignore[arg-type]
                return
        _call(listener, listener.failed, request.request_id, failed)


def _hand_over(news: News, seconds: float) -> None:
    """Give listeners their updates, and wait a moment until they have them."""
    handed = [_begin_hand_over(listener, updates) for listener, updates in news.items()]
    end = time.monotonic() + seconds
    for delivered in handed:
        delivered.acquire(timeout=max(0.0, end - time.monotonic()))


def _begin_hand_over(listener: Listener, updates: list[SequenceUpdate]) -> threading.Lock:
    """Give a listener its updates; the lock is held until it has taken them."""
    delivered = threading.Lock()
    delivered.acquire()

    def take() -> None:
        listener.updated(updates)
        delivered.release()

    _call(listener, take)
    return delivered


def _call(listener: Listener, method: Callable[..., None], *arguments: Any) -> None:
    try:
        listener.loop.call_soon_threadsafe(method, *arguments)
    except RuntimeError:
        logger.debug("a consumer's event loop was closed before its request ended")
