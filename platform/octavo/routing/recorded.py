"""A router that writes down what it is told and what it decides, as `octavo.engine.recorded` does for a scheduler."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from octavo.load import LoadedAdapters, ShardState
from octavo.recording import Frame, Recorder, Write
from octavo.routing.index import BlockIndex, Change, Kind, ShardBlocks
from octavo.routing.policy import Choice, Query
from octavo.routing.router import KnownShard, Router, RoutingConfig


class Begun(Frame, tag="begun"):
    """The router.

    Attributes:
        name: of its gateway.
        wall, time: the same moment as seconds since 1970 and on the gateway's clock.
        capacity: requests that one shard gets at once.
    """

    name: str
    wall: float
    time: float
    capacity: int


class Configured(Frame, tag="config"):
    """Its settings from now on."""

    config: RoutingConfig


class Joined(Frame, tag="join"):
    """A shard that was not known."""

    shard: str
    time: float


class Left(Frame, tag="leave"):
    """As in `Router.leave`."""

    shard: str


class Changed(Frame, tag="blocks"):
    """As in `ShardBlocks.changes`."""

    shard: str
    first: int
    changes: list[tuple[Kind, list[bytes]]]


class Parted(Frame, tag="part"):
    """As in `ShardBlocks.part`."""

    shard: str
    sequence: int
    index: int
    count: int
    hashes: list[bytes]


class Heard(Frame, tag="heard"):
    """As in `Router.heard`."""

    shard: str
    state: ShardState | None
    tickets: list[str]
    known_at: float | None
    adapters: LoadedAdapters | None


class Completed(Frame, tag="completed"):
    """As in `Router.completed`."""

    ticket: str
    ran: bool


class Settled(Frame, tag="settle"):
    """As in `Router.settle`, where nothing is decided."""

    time: float


class Routed(Frame, tag="route"):
    """A decision, and what it was asked for: arguments as of `Router.route`."""

    ticket: str
    chain: list[bytes]
    query: Query
    names: list[str]
    time: float
    within: float
    choice: Choice


RouterFrame = Begun | Configured | Joined | Left | Changed | Parted | Heard | Completed | Settled | Routed


def hidden(session: str) -> str:
    """What stands for a session in a recording; requests go by it while one is made."""
    return blake2b(session.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() if session else ""


class RecordedRouter(Router):
    """A router whose frames go to `write`.

    Args:
        hide: what stands for a session.
    """

    def __init__(
        self,
        config: RoutingConfig,
        write: Write,
        hide: Callable[[str], str] = hidden,
        recorder: Recorder | None = None,
    ) -> None:
        self._write, self._hide, self._recorder, self._decides = write, hide, recorder, False
        super().__init__(config)

    @property
    def config(self) -> RoutingConfig:
        """How it decides."""
        return self._config

    @config.setter
    def config(self, config: RoutingConfig) -> None:
        self._config = config
        self._write(Configured(config))

    def join(self, name: str, now: float) -> KnownShard:
        """As of `Router`."""
        if name in self.shards:
            return super().join(name, now)
        self._write(Joined(name, now))
        return super().join(name, now)

    def _blocks(self, name: str) -> ShardBlocks:
        return _Blocks(self.config.max_blocks_per_shard, self._index, name, self._write)

    def leave(self, name: str) -> None:
        """As of `Router`."""
        self._write(Left(name))
        super().leave(name)

    def heard(
        self,
        name: str,
        state: ShardState | None,
        tickets: Iterable[str],
        known_at: float | None,
        adapters: LoadedAdapters | None = None,
    ) -> None:
        """As of `Router`."""
        named = list(tickets)
        self._write(Heard(name, state, named, known_at, adapters))
        super().heard(name, state, named, known_at, adapters)

    def completed(self, ticket: str, *, ran: bool = True) -> None:
        """As of `Router`."""
        self._write(Completed(ticket, ran))
        super().completed(ticket, ran=ran)

    def route(
        self,
        ticket: str,
        chain: Sequence[bytes],
        query: Query,
        names: Sequence[str],
        now: float,
        within: float = math.inf,
    ) -> Choice:
        """As of `Router`."""
        query, self._decides = replace(query, session=self._hide(query.session)), True
        choice = super().route(ticket, chain, query, names, now, within)
        self._decides = False
        self._write(Routed(ticket, list(chain), query, list(names), now, within, choice))
        return choice

    def settle(self, now: float) -> None:
        """As of `Router`."""
        if not self._decides:
            self._write(Settled(now))
        super().settle(now)

    def close(self) -> None:
        """As of `Router`."""
        if self._recorder is not None:
            self._recorder.end("its router is of no use any more")


class _Blocks(ShardBlocks):
    """A shard's blocks whose changes are frames."""

    def __init__(self, capacity: int, index: BlockIndex, shard: str, write: Write) -> None:
        super().__init__(capacity, index)
        self._shard, self._write = shard, write

    def changes(self, first: int, changes: Sequence[Change]) -> None:
        """As of `ShardBlocks`."""
        self._write(Changed(self._shard, first, [(kind, list(hashes)) for kind, hashes in changes]))
        super().changes(first, changes)

    def part(self, sequence: int, index: int, count: int, hashes: Iterable[bytes]) -> None:
        """As of `ShardBlocks`."""
        held = list(hashes)
        self._write(Parted(self._shard, sequence, index, count, held))
        super().part(sequence, index, count, held)


def recorded_router(config: RoutingConfig, folder: str, capacity: int) -> RecordedRouter:
    """A router that writes to a folder, which has its gateway's name; capacity as in `Begun`."""
    recorder = Recorder(folder, "router")
    recorder.write(Begun(Path(folder).name, time.time(), time.monotonic(), capacity))
    return RecordedRouter(config, recorder.write, recorder=recorder)


class RouterReplay:
    """A router that is told what a recorded one was told.

    Args:
        write: takes its frames, one for each that is applied.
    """

    def __init__(self, begun: Begun, write: Write) -> None:
        self.now = begun.time
        self._write = write
        self.router: RecordedRouter | None = None

    def apply(self, frame: RouterFrame) -> None:
        """Do what a frame says was done."""
        self.now = getattr(frame, "time", self.now)
        if isinstance(frame, Configured):
            self._configure(frame.config)
            return
        router = self.router
        assert router is not None, "its settings come first"
        match frame:
            case Joined():
                router.join(frame.shard, frame.time)
            case Left():
                router.leave(frame.shard)
            case Changed():
                router.shards[frame.shard].blocks.changes(frame.first, frame.changes)
            case Parted():
                router.shards[frame.shard].blocks.part(frame.sequence, frame.index, frame.count, frame.hashes)
            case Heard():
                router.heard(frame.shard, frame.state, frame.tickets, frame.known_at, frame.adapters)
            case Completed():
                router.completed(frame.ticket, ran=frame.ran)
            case Settled():
                router.settle(frame.time)
            case Routed():
                router.route(frame.ticket, frame.chain, frame.query, frame.names, frame.time, frame.within)

    def _configure(self, config: RoutingConfig) -> None:
        if self.router is None:
            self.router = RecordedRouter(config, self._write, hide=str)
        else:
            self.router.config = config
