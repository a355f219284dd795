"""The engine of a model that may sleep, wake up, and go over to other weights while it is served.

    awake ── sleep ──> dozing ── nothing runs ──> asleep ── wake_up ──> waking ──> awake
    awake ── switch ──> awake                     the new weights take what comes from now on; the old ones end what
                                                  they run, beside them
          ──> switching ──> awake                 one after the other, where there is no room for both: on a GPU, over
                                                  ranks

An engine has one set of weights for all of its life, and a name for them that its blocks' hashes start from. A request
that says which weights it was made for (`Request.made_for`) meets those or none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine, Listener
from octavo.engine.engine import Engine
from octavo.engine.freed import give_back
from octavo.engine.stats import EngineStats
from octavo.errors import BadRequest, EngineDead, ModelError, OctavoError
from octavo.load import Phase
from octavo.models.packed_cache import version
from octavo.models.replacement import check_replacement, named_by_weights
from octavo.request import Request
from octavo.source import Source, resolve_source

if TYPE_CHECKING:
    from octavo.execution.ranks import Launch

T = TypeVar("T")

logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.5
"""That nothing runs or comes before a model falls asleep: requests that were taken in elsewhere are on their way."""

_SWITCH_QUIET = 0.1
"""The same before weights give way to others, which who sends requests was told before."""


class Loading:
    """Loads engines of one model.

    Args:
        first: the source that the config names.
        launch: as of `Engine.load`.
    """

    def __init__(
        self, first: Source, config: EngineConfig, *, progress: bool = False, launch: Launch | None = None
    ) -> None:
        self.first, self.config = first, config
        self._version = version(first)  # of its files now
        self._progress, self._launch = progress, launch

    def named(self, found: Source) -> Source:
        """A source whose name says which weights it has; the first one, while its files are those of the start, has its
        own.

        Raises:
            ModelError: it cannot be read.
        """
        if found.path == self.first.path and version(found) == self._version:
            return self.first
        return named_by_weights(found)

    def __call__(self, source: Source, like: AsyncEngine | None = None) -> AsyncEngine:
        """As `AsyncEngine.load_found`."""
        return AsyncEngine.load_found(
            source, self.config, progress=self._progress, launch=self._launch, tokens=self.first, like=like
        )

    @property
    def holds_two(self) -> bool:
        """Whether a second set of weights is loaded while the first one runs."""
        if self.config.rehearsal is not None:
            return True
        from octavo.execution.device import find_device  # torch

        return self.config.tensor_parallel_size == 1 and find_device(self.config.device) == "cpu"


class ServedEngine:
    """An `AsyncEngine`, or the place of one while its model is asleep.

    What takes long happens in a thread of its own, one thing after the other; the phase may be read by any thread.

    Args:
        engine: that runs now.
        source: of its model; None: it stays as it is for ever, and so with `load`.
        load: makes another one.

    Attributes:
        phase: what it does now.
        level: of its sleep; 0 while it is not asleep.
        on_change: called from any thread after `phase`, `level` or `name` have changed.
        on_engine: done to each further engine, in its thread, before it runs anything.
    """

    def __init__(self, engine: AsyncEngine, source: Source | None = None, load: Loading | None = None) -> None:
        self.phase: Phase = "awake"
        self.level = 0
        self.on_change: Callable[[], object] = lambda: None
        self.on_engine: Callable[[Engine], object] | None = None
        self._engine, self._source, self._load = engine, source, load
        self._older: list[AsyncEngine] = []  # that end what they run
        self._staged: tuple[Source, AsyncEngine | None] | None = None
        self._version = "" if source is None else version(source)  # of its files when they were read
        self._called = threading.Event()  # to wake up
        self._thread = ThreadPoolExecutor(1, "octavo-weights")

    @classmethod
    def load(
        cls,
        source: str,
        config: EngineConfig,
        *,
        progress: bool = False,
        launch: Launch | None = None,
        instead: str = "",
    ) -> ServedEngine:
        """Load a model.

        Args:
            instead: a source of the weights that have taken the place of the source's; "": none have.

        Raises:
            ModelError, ConfigError: it cannot be loaded, or not with these settings.
        """
        load = Loading(resolve_source(source, config.runner), config, progress=progress, launch=launch)
        found = load.first
        if instead:
            try:
                found = load.named(resolve_source(instead, config.runner))
                return cls(load(found), found, load)
            except OctavoError as error:
                raise ModelError(f"the weights in the place of {source!r} cannot be loaded: {error}") from None
        return cls(load(found), found, load)

    @property
    def engine(self) -> Engine:
        """The engine; while its model sleeps, the books of the last one."""
        return self._engine.engine

    @property
    def name(self) -> str:
        """Of the weights: what hashes of blocks start from."""
        return self.engine.limits.name if self._source is None else self._source.name

    # ---- requests ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, listener: Listener) -> None:
        """As of `AsyncEngine`.

        Raises:
            EngineDead: nothing here runs it now.
        """
        if self.phase not in ("awake", "dozing"):
            raise EngineDead(f"the model is {self.phase}")
        found = [each for each in (self._engine, *self._older) if request.made_for in ("", each.engine.limits.name)]
        if not found:
            raise EngineDead("the weights that this request was made for are gone")
        found[0].submit(request, listener)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """As of `AsyncEngine`."""
        for each in (self._engine, *self._older):
            each.abort(request_id, index)

    def call(self, do: Callable[[Engine], T]) -> Future[T]:
        """As of `AsyncEngine`: the engine that takes requests now."""
        return self._engine.call(do)

    def check_health(self) -> None:
        """As of `AsyncEngine`; one that is asleep is well."""
        for each in self._older.copy():
            if not each.has_finished:
                each.check_health()
        if self.phase in ("awake", "dozing") and not self._engine.has_finished:
            self._engine.check_health()

    def stats(self) -> EngineStats:
        """As of `AsyncEngine`."""
        return self._engine.stats()

    def close(self) -> None:
        """As of `AsyncEngine`."""
        self._called.set()
        self._thread.shutdown(cancel_futures=True)
        self._drop_staged()
        for each in (*self._older, self._engine):
            if not each.has_finished:
                each.close()

    # ---- sleep ------------------------------------------------------------------------------------------------

    def sleep(self, level: int) -> Future[None]:
        """Give the memory of weights and cache back, once what runs has ended.

        Args:
            level: 1 keeps what a slower tier of the cache can hold; 2 keeps nothing.
        """
        self._called.clear()
        return self._thread.submit(self._sleep, level)

    def _sleep(self, level: int) -> None:
        self._changeable()
        if self.phase == "asleep":
            self._enter("asleep", max(level, self.level))
            return
        staged = self._staged
        self._drop_staged()
        if staged is not None:  # a change is under way: another shard may have gone over, so this one has to as well
            self._staged = staged[0], None
        self._enter("dozing", level)
        try:
            if not self._engine.finish(QUIET_SECONDS, self._called, keeps=level == 1):
                raise BadRequest("it was woken up before it had fallen asleep")
        except BaseException:
            self._enter("awake")
            raise
        while self._older:
            time.sleep(0.05)
        self._enter("asleep", level)
        give_back()

    def wake_up(self) -> Future[None]:
        """Load the model again; one that is about to fall asleep stays awake."""
        self._called.set()
        return self._thread.submit(self._wake_up)

    def _wake_up(self) -> None:
        if self.phase != "asleep":
            return
        source, load = self._changeable()
        level = self.level
        if version(source) != self._version:
            raise ModelError(
                f"the files of {source.path} have changed while the model slept: POST /v1/update_weights "
                "says that other weights are meant"
            )
        self._enter("waking", level)
        try:
            self._engine = self._made(load, source)
        except BaseException:
            self._enter("asleep", level)
            raise
        self._enter("awake")

    # ---- other weights ----------------------------------------------------------------------------------------

    def stage(self, path: str) -> Future[str]:
        """Check other weights, and load them beside those that run where there is room; nothing changes yet.

        Returns:
            what they are called.
        """
        return self._thread.submit(self._stage, path)

    def _stage(self, path: str) -> str:
        source, load = self._changeable()
        self._drop_staged()
        found = resolve_source(path, load.config.runner)
        tokenizer = self._engine.tokenizer
        assert tokenizer is not None
        check_replacement(source, found, tokenizer)
        found = load.named(found)
        beside = self.phase == "awake" and load.holds_two and found.name != self.name
        self._staged = found, self._made(load, found) if beside else None
        return found.name

    def unstage(self) -> Future[None]:
        """Drop what `stage` has loaded."""
        return self._thread.submit(self._drop_staged)

    def switch(self) -> Future[None]:
        """Go over to the weights that were staged; what runs ends with the old ones."""
        return self._thread.submit(self._switch)

    def _switch(self) -> None:
        if self._staged is None:
            raise BadRequest("no weights were made ready")
        (source, engine), self._staged = self._staged, None
        if source.name == self.name:
            return
        if self.phase == "asleep":
            self._source, self._version = source, version(source)
            self._enter("asleep", self.level)
        elif engine is not None:
            old, self._engine = self._engine, engine
            self._older.append(old)
            self._source, self._version = source, version(source)
            self._enter("awake")
            threading.Thread(target=self._end, args=(old,), name="octavo-older", daemon=True).start()
        else:
            self._switch_in_place(source)

    def _switch_in_place(self, source: Source) -> None:
        before, load = self._changeable()
        self._enter("switching")
        old = self._engine
        old.finish(_SWITCH_QUIET, keeps=False)
        give_back()
        try:
            self._engine = self._made(load, source)
            self._source, self._version = source, version(source)
        except Exception as error:
            logger.exception("the new weights cannot be loaded; the old ones are")
            self._engine = self._made(load, before)
            raise ModelError(f"the new weights cannot be loaded, and the old ones serve again: {error}") from None
        finally:
            self._enter("awake")  # where there is no engine, its health says so

    def _end(self, old: AsyncEngine) -> None:
        """Let an engine end what it runs."""
        try:
            old.finish(_SWITCH_QUIET, keeps=True)
        except EngineDead:
            logger.exception("an engine with older weights has stopped")
        self._older.remove(old)
        give_back()

    def _changeable(self) -> tuple[Source, Loading]:
        """What another engine is made of.

        Raises:
            BadRequest: this one is for ever.
        """
        if self._source is None or self._load is None:
            raise BadRequest("this engine was not loaded from a checkpoint")
        if self._load.config.record is not None:
            raise BadRequest("a shard that is recorded neither sleeps nor changes its weights: leave record out")
        return self._source, self._load

    def _made(self, load: Loading, source: Source) -> AsyncEngine:
        made = load(source, self._engine)
        if self.on_engine is not None:
            made.call(self.on_engine)
        return made

    def _drop_staged(self) -> None:
        staged, self._staged = self._staged, None
        if staged is not None and staged[1] is not None:
            staged[1].close()
            give_back()

    def _enter(self, phase: Phase, level: int = 0) -> None:
        self.phase, self.level = phase, level
        self.on_change()
