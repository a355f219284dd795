"""LoRA adapters that are loaded, who uses them, and who waits for one.

A request whose adapter is cold waits here, before it comes into the scheduler's queue, while a thread reads the files;
nobody else waits for that. An adapter that requests use stays. Of the others, those that were used longest ago go when
all together take more than the budget.

The thread loads one adapter at a time, and the next only where those in use leave room, so that memory holds at most
the budget and one adapter more. All else here runs in the engine's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

from octavo.errors import BadRequest, EngineDead, OctavoError, Overloaded
from octavo.load import MOST_TOLD, LoadedAdapters
from octavo.request import Adapter, Request

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from octavo.execution.executor import Executor

logger = logging.getLogger(__name__)

_PAUSE = 0.005
"""Seconds that an engine with nothing else to do waits for an adapter before it looks for new requests."""


_REMEMBERED = 1024
"""Adapters of which it is remembered that they take more than the budget."""

_NEWEST = 0.25
"""Weight of the newest adapter in the mean of the seconds that they take to come."""


class Waiting(NamedTuple):
    """A request whose adapter is not there yet, and what its grammar was compiled to."""

    request: Request
    matcher: LLMatcher | None


class Loading(NamedTuple):
    """An adapter that the thread reads, since when, and its bytes to come."""

    adapter: Adapter
    since: float
    size: Future[int]


class Adapters:
    """The adapters of one engine.

    Args:
        executor: what loads and drops them.
        budget: bytes of all that are loaded.
        most_waiting: requests that may wait for adapters.

    Attributes:
        waiting: requests by id, in order of arrival.
        loaded: what routers are told; replaced as a whole, for other threads.
    """

    def __init__(self, executor: Executor, budget: int, most_waiting: int) -> None:
        self._executor = executor
        self._budget = budget
        self._most_waiting = most_waiting
        self._sizes: dict[str, int] = {}  # of those that are loaded, by digest; used longest ago first
        self._users: dict[str, str] = {}  # request -> digest
        self._too_large: dict[str, str] = {}  # digest -> sentence: nobody else's adapter waits for one again
        self._loading: Loading | None = None
        self._thread: ThreadPoolExecutor | None = None
        self.waiting: dict[str, Waiting] = {}
        self.loaded = LoadedAdapters()

    def __contains__(self, request_id: object) -> bool:
        """Whether a request uses an adapter."""
        return request_id in self._users

    @property
    def in_use(self) -> bool:
        """Whether any request uses one."""
        return bool(self._users)

    def hold(self, request: Request) -> bool:
        """Keep a request's adapter until `release`; False where it is not loaded."""
        assert request.adapter is not None
        digest = request.adapter.digest
        if digest not in self._sizes:
            return False
        self._sizes[digest] = self._sizes.pop(digest)
        self._users[request.request_id] = digest
        return True

    def release(self, request_id: str) -> None:
        """A request has ended, or was never taken in."""
        self._users.pop(request_id, None)

    def wait_for(self, request: Request, matcher: LLMatcher | None) -> None:
        """Have a request wait until its adapter is loaded.

        Raises:
            BadRequest: one of this id waits already, or the adapter is known to be too large.
            Overloaded: too many wait.
        """
        assert request.adapter is not None
        if (sentence := self._too_large.get(request.adapter.digest)) is not None:
            raise BadRequest(sentence, "model")
        if request.request_id in self.waiting:
            raise BadRequest(f"request id {request.request_id!r} is already in use", "request_id")
        if len(self.waiting) >= self._most_waiting:
            raise Overloaded(f"{len(self.waiting)} requests wait for adapters: try again later", 1.0)
        self.waiting[request.request_id] = Waiting(request, matcher)
        self._begin()

    def drop(self, request_id: str) -> bool:
        """A request is aborted; whether it waited here."""
        return self.waiting.pop(request_id, None) is not None

    def pause(self) -> None:
        """Wait a moment for the thread, where nothing else can be done."""
        if self._loading is not None:
            wait([self._loading.size], _PAUSE)

    def arrived(self, failed: Callable[[Request, str], None]) -> list[Waiting]:
        """Requests that may run now: their adapters are held.

        Args:
            failed: is told of a request whose adapter cannot be loaded, and why.

        Raises:
            EngineDead: a rank died over it.
        """
        if self._loading is not None and self._loading.size.done():
            loaded, self._loading = self._loading, None
            if sentence := self._keep(loaded):
                for each in self._waiting_for(loaded.adapter.digest):
                    failed(self.waiting.pop(each.request.request_id).request, sentence)
        ready = [each for each in self.waiting.values() if self.hold(each.request)]
        for each in ready:
            del self.waiting[each.request.request_id]
        self._begin()
        return ready

    def close(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _waiting_for(self, digest: str) -> list[Waiting]:
        return [each for each in self.waiting.values() if each.request.adapter_digest == digest]

    def _keep(self, loaded: Loading) -> str:
        """Count a loaded adapter, and make room for it; what is wrong with it, or ""."""
        adapter = loaded.adapter
        try:
            size = loaded.size.result()
        except EngineDead:
            raise
        except OctavoError as error:
            return f"adapter {adapter.name!r} cannot be loaded: {error}"
        except Exception as error:  # whatever its files made of a library: nobody else's end
            logger.exception("adapter %r cannot be loaded", adapter.name)
            return f"adapter {adapter.name!r} cannot be loaded: {type(error).__name__}; the server's log says more"
        if size > self._budget:
            self._executor.drop_adapter(adapter.digest)
            return self._refuse(adapter, size)
        self._sizes[adapter.digest] = size
        self._make_room(adapter.digest)
        self._tell(time.monotonic() - loaded.since)
        return ""

    def _tell(self, took: float) -> None:
        """An adapter has come, after so many seconds."""
        seconds = self.loaded.seconds + _NEWEST * (took - self.loaded.seconds)
        self.loaded = LoadedAdapters(tuple(self._sizes)[-MOST_TOLD:], seconds)

    def _refuse(self, adapter: Adapter, size: int) -> str:
        while len(self._too_large) >= _REMEMBERED:
            del self._too_large[next(iter(self._too_large))]
        sentence = f"adapter {adapter.name!r} takes {size} bytes, and lora_bytes is {self._budget}: raise it"
        self._too_large[adapter.digest] = sentence
        return sentence

    def _make_room(self, newest: str) -> None:
        used = set(self._users.values()) | {newest}
        for digest in [digest for digest in self._sizes if digest not in used]:
            if sum(self._sizes.values()) <= self._budget:
                return
            del self._sizes[digest]
            self._executor.drop_adapter(digest)

    def _begin(self) -> None:
        """Load for the request that has waited longest, unless those in use leave no room."""
        used = sum(self._sizes[digest] for digest in set(self._users.values()))
        if self._loading is not None or not self.waiting or used >= self._budget:
            return
        adapter = next(iter(self.waiting.values())).request.adapter
        assert adapter is not None
        self._thread = self._thread or ThreadPoolExecutor(1, "octavo-adapters")
        size = self._thread.submit(self._executor.load_adapter, adapter)
        self._loading = Loading(adapter, time.monotonic(), size)
