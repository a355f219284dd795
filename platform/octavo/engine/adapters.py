"""LoRA adapters that are loaded, who uses them, and who waits for one.

A request whose adapter is cold waits here, before it comes into the scheduler's queue, while a thread reads the files;
nobody else waits for that. An adapter that requests use stays. Of the others, those that were used longest ago go when
all together take more than the budget. Where those in use fill it, who wants another waits until one of them is not
used any more; after MOST_PASSED who came later and found theirs loaded, newcomers wait as well until it is let in.

The thread loads one adapter at a time, and the next only where those in use leave room, so that memory holds at most
the budget and one adapter more. All else here runs in the engine's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

from octavo.engine.stats import AdapterStats
from octavo.errors import BadRequest, EngineDead, OctavoError, Overloaded
from octavo.load import MOST_TOLD, LoadedAdapters
from octavo.request import Adapter, Request

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from octavo.execution.executor import Executor

logger = logging.getLogger(__name__)

_PAUSE = 0.005
"""Seconds that an engine with nothing else to do waits for an adapter before it looks for new requests."""


MOST_PASSED = 16
"""Requests that may overtake one for whose adapter there is no room: adapters that are asked for all the time would
keep it out for ever."""

_REMEMBERED = 1024
"""Adapters of which it is remembered that they take more than the budget."""

_NEWEST = 0.25
"""Weight of the newest adapter in the mean of the seconds that they take to come."""


class Waiting(NamedTuple):
    """A request whose adapter is not there yet, what its grammar was compiled to, and since when it waits."""

    request: Request
    matcher: LLMatcher | None
    since: float


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
        self._loads = 0
        self._passed = 0  # who overtook those that wait, for want of room, since the last adapter came
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
        """Keep a newcomer's adapter until `release`; False where it has to wait (`wait_for`)."""
        if not self.waiting:
            self._passed = 0
        lines_up = self._passed >= MOST_PASSED or request.request_id in self.waiting
        if lines_up or not self._hold(request):
            return False
        self._passed += bool(self.waiting) and self._is_full
        return True

    def _hold(self, request: Request) -> bool:
        """False where it is not loaded."""
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
        self.waiting[request.request_id] = Waiting(request, matcher, time.monotonic())
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
            loaded, self._loading, self._passed = self._loading, None, 0
            if sentence := self._keep(loaded):
                for each in self._waiting_for(loaded.adapter.digest):
                    failed(self.waiting.pop(each.request.request_id).request, sentence)
        ready = list(self._ready())
        for each in ready:
            del self.waiting[each.request.request_id]
        self._begin()
        return ready

    def stats(self) -> AdapterStats:
        """Counts, now; another thread may call it."""
        return AdapterStats(len(self._sizes), self._loads, len(self.waiting))

    def close(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _ready(self) -> Iterator[Waiting]:
        """Those whose adapters are loaded; in order alone where enough have overtaken."""
        for each in self.waiting.values():
            if self._hold(each.request):
                yield each
            elif self._passed >= MOST_PASSED:
                return

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
        self._loads += 1
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

    @property
    def _is_full(self) -> bool:
        """Whether those in use leave no room."""
        return sum(self._sizes[digest] for digest in set(self._users.values())) >= self._budget

    def _begin(self) -> None:
        """Load for the request that has waited longest, unless those in use leave no room."""
        wanted = (each.request.adapter for each in self.waiting.values())
        adapter = next((each for each in wanted if each is not None and each.digest not in self._sizes), None)
        if self._loading is not None or adapter is None or self._is_full:
            return
        self._thread = self._thread or ThreadPoolExecutor(1, "octavo-adapters")
        size = self._thread.submit(self._executor.load_adapter, adapter)
        self._loading = Loading(adapter, time.monotonic(), size)
