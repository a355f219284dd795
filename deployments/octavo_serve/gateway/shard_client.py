"""One model's shards as the gateway sees them: requests go to the shard that the router picks, and survive it.

The client keeps what each sequence has emitted. When the shard dies, leaves, falls silent or its engine stops, the
rest of the request runs on another: prompt and emitted tokens, the same seed, what is left of `max_tokens`
(`Request.emitted`). Random numbers are counted by position, so the tokens are those of the unbroken run.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from octavo.engine.stats import EngineStats
from octavo.errors import EngineDead, OctavoError, Overloaded
from octavo.request import Placement, Request, SequenceUpdate
from octavo_serve.api.model import NO_CLAIM, Claim
from octavo_serve.api.tracing import Course, course
from octavo_serve.gateway.link import CONNECT_SECONDS, Link, MoveReason, ShardGone
from octavo_serve.gateway.picker import Picked, Picker
from octavo_serve.gateway.prefill import compute_prompt
from octavo_serve.gateway.request_run import RequestRun
from octavo_serve.gateway.suspicion import Deaths, Suspicion
from octavo_serve.gateway.unread import Unread
from octavo_serve.ray_private import Replica
from octavo_serve.wire.messages import BEAT_SECONDS, MAX_PEERS, Address, Courses, ModelInfo, PeerAddresses

logger = logging.getLogger("ray.serve")

STATS_TIMEOUT = 2.0
"""Seconds a shard may take to answer for /health and /metrics."""

FIRST_PAUSE, LAST_PAUSE = 0.1, 1.0
"""Seconds between attempts to reach a shard, at first and at most; each pause is twice the one before."""

MAX_LEFT = 16
"""Shards that have left, of which others may still fetch KV blocks."""

CLOSING_SECONDS = 1.0  # between two looks whether anything runs
PAUSE_SECONDS = 0.05  # between two looks whether a shard that took a request with it has died
FULL_SECONDS = 1.0
"""Where all queues are full, a request that moved asks again after so long, or when a place or a shard comes."""


@dataclass(frozen=True, slots=True)
class Failover:
    """How long and how often a request may look for a shard (see `settings.GatewaySettings`).

    Attributes:
        timeout: seconds to wait for a shard that takes it.
        moves: shards that may die under one request, of those that it may have stopped.
        silence: seconds without a sign of life after which a shard counts as dead.
    """

    timeout: float = 120.0
    moves: int = 5
    silence: float = 10.0


class ShardClient:
    """One model's shards; what Ray raises comes out as Octavo's errors.

    It holds a link to every shard that Serve lists, and opens a lost one again with growing pauses: until then the
    shard is not picked, and does not count as there.

    Args:
        picker: of the model's shards.
        failover: limits.
        moved: told why, each time a request moves to another shard.
        unread: what waits in the gateway for clients that do not read.
        follow: gives a request's course, by its id, if somebody wants to know it.

    Attributes:
        links: to all shards that can be reached, whether requests are sent there now or not.
        on_change: called when a shard's model falls asleep or wakes up, or its weights change.
    """

    def __init__(
        self,
        picker: Picker,
        failover: Failover,
        moved: Callable[[MoveReason], None],
        unread: Unread,
        follow: Callable[[str], Course | None] = lambda _: course(),
    ) -> None:
        self._picker = picker
        self._follow = follow
        self.failover = failover
        self._moved = moved
        self._unread = unread
        self._there: dict[str, Replica] = {}
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self.links: dict[str, Link] = {}
        self.on_change: Callable[[], object] = lambda: None
        self._runs: dict[str, RequestRun] = {}
        self._sharing: dict[str, Address] = {}  # where shards give KV blocks, in the order in which they came
        self._deaths = Deaths()
        self._info: ModelInfo | None = None

    async def describe(self) -> ModelInfo:
        """What the shards say of their model; waits for the first of them.

        Raises:
            EngineDead: there was none for too long.
        """
        if self._info is None:
            with self._patience(), octavo_errors():
                async with asyncio.timeout(self._longest_wait):
                    await self._picker.anybody()
            assert self._info is not None
        return self._info

    @contextlib.contextmanager
    def admitted(
        self, key: Callable[[], bytes], sequences: int, tokens: int, claim: Claim = NO_CLAIM
    ) -> Iterator[None]:
        """Accept a request or refuse it; as `ModelClient.admitted`."""
        with octavo_errors(), self._picker.admitted(key, sequences, tokens, claim):
            yield

    async def stats(self) -> list[tuple[str, EngineStats]]:
        """(shard name, statistics) of the shards that can be reached and answer in time."""
        links = dict(self.links)
        answers = await asyncio.gather(*(link.stats(STATS_TIMEOUT) for link in links.values()))
        return [(name, stats) for name, stats in zip(links, answers, strict=True) if stats is not None]

    def listed_shards(self) -> list[tuple[Replica, Link | None]]:
        """The shards that Serve lists, each with the link to it, if there is one now."""
        return [(replica, self.links.get(name)) for name, replica in self._there.items()]

    def num_answering(self) -> int:
        """Shards that requests can be sent to and that have said something a moment ago."""
        return sum(link.answers for link in self._picker.links.values())

    def num_running(self) -> int:
        """Requests that run at a shard or look for one."""
        return sum(bool(run.living) for run in self._runs.values())

    def room_below(self) -> int:
        """As of `Picker`."""
        return self._picker.room_below()

    def placement(self, request_id: str) -> Placement | None:
        """Where a request that runs was sent last."""
        run = self._runs.get(request_id)
        return None if run is None else run.request.placement

    async def courses(self, shard: str, request_id: str, block: bytes) -> Courses | None:
        """As `ModelClient.courses`."""
        link = self._picker.links.get(shard)
        return None if link is None else await link.courses(request_id, block)

    def held(self) -> Mapping[str, Container[bytes]]:
        """As `ModelClient.held`."""
        return {name: shard.blocks for name, shard in self._picker.router.shards.items()}

    async def close(self) -> None:
        """Let what runs come to its end, and leave the shards."""
        while self._runs:
            await asyncio.sleep(CLOSING_SECONDS)
        links = list(self._picker.links.values())
        self.listed([])
        for link in links:
            link.close()
        await self._picker.close()

    def listed(self, replicas: list[Replica]) -> None:
        """From now on these shards and no others, but for those that have not said yet where they are."""
        self._there = there = {replica.name: replica for replica in replicas if replica.metadata}
        for name in self._keeping.keys() - there.keys():
            self._keeping.pop(name).cancel()  # streams that run there end there
            self._learn(name, Suspicion.died)
            self._picker.leave(name)
            self._bequeath(name)
        for name in there.keys() - self._keeping.keys():
            self._keeping[name] = asyncio.create_task(self._keep(name))
        self._introduce()
        self._picker.listed()

    def _bequeath(self, name: str) -> None:
        """Have another shard fetch what is hot at one that leaves: the same one, whichever gateway says it."""
        if name in self._sharing and self._picker.links:
            heir = max(self._picker.links, key=lambda each: blake2b(f"{name} {each}".encode()).digest())
            self._picker.links[heir].inherit(name)

    def _introduce(self) -> None:
        """Tell the shards of those that give KV blocks, where that is news: those that left last among them."""
        for name, replica in self._there.items():
            if "kv" in replica.metadata:
                self._sharing[name] = Address.of(replica.metadata["kv"])
        left = [name for name in self._sharing if name not in self._there]
        for name in left[:-MAX_LEFT]:
            del self._sharing[name]
        peers = PeerAddresses(dict(list(self._sharing.items())[-MAX_PEERS:]))
        for link in self._picker.links.values():
            if peers.addresses != link.introduced:
                link.introduce(peers)

    async def _keep(self, name: str) -> None:
        """Hold a link to a shard for as long as Serve lists it, or until it says that it leaves."""
        address, pause = Address.of(self._there[name].metadata), FIRST_PAUSE
        while True:
            link = await Link.open(address, self.failover.silence)
            if link is not None:
                self._deaths.forget([name])
                self._learn(name, Suspicion.lives)
            elif await _nobody_listens(address):
                self._learn(name, Suspicion.died)
            if link is not None and self._serves(link):
                since = time.monotonic()
                try:
                    await self._offer(name, link)
                finally:
                    link.retire()
                if link.gone == "left":
                    return
                if time.monotonic() - since > LAST_PAUSE:
                    pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def _offer(self, name: str, link: Link) -> None:
        """Let requests be sent to a shard until its link ends."""
        ended = asyncio.Event()
        link.on_end = functools.partial(self._ended, name, link, ended)
        link.on_change = functools.partial(self._changed, name, link)
        self.links[name] = link
        try:
            while not ended.is_set():
                # again and again: it may have refused something and be well by now, or take more than before
                self._let_in(name, link)
                with contextlib.suppress(TimeoutError):  # not `wait_for`: in 3.11 it loses a cancellation
                    async with asyncio.timeout(BEAT_SECONDS):
                        await ended.wait()
        finally:
            del self.links[name]

    def _let_in(self, name: str, link: Link) -> None:
        """Have requests be sent to a shard, if it takes them and they mean the same to it as to the others."""
        if link.takes_requests and name in self._there and self._fits(link):
            self._picker.join(self._there[name], link)
            self._introduce()

    def _changed(self, name: str, link: Link) -> None:
        """A shard's model sleeps or wakes, or its weights are others; what runs there goes on."""
        if self._picker.links.get(name) is link:
            assert link.hello is not None
            if not link.takes_requests or link.hello.model != self._info:
                self._picker.leave(name, link)
        for other, each in list(self.links.items()):
            self._let_in(other, each)
        self.on_change()

    @property
    def info(self) -> ModelInfo | None:
        """What the shards said last of their model."""
        return self._info

    @property
    def asleep(self) -> int:
        """At which level the model sleeps, or is about to; 0 while a shard takes requests, or none can be reached."""
        found = [link.level for link in self.links.values()]
        sleeps = all(link.phase in ("dozing", "asleep") for link in self.links.values())
        return max(found, default=0) if sleeps else 0

    def _fits(self, link: Link) -> bool:
        """Whether requests made for the other shards can run there.

        While shards go over to other weights one after the other, or a config with another model or block size is
        rolled out, there are shards of both: those that came first are asked until none of them is left, for hashes and
        token ids of one mean something else to the other.
        """
        assert link.hello is not None
        if not self._picker.links:
            self._info = link.hello.model
        return link.hello.model == self._info

    def _serves(self, link: Link) -> bool:
        """Whether a shard serves this model, with these weights or others; ends the link if not."""
        assert link.hello is not None
        found = link.hello.model
        if self._fits(link) or (self._info is not None and found == replace(self._info, hash_name=found.hash_name)):
            return True
        logger.warning("%s serves %s, not %s: it is not asked", link.hello.shard, found, self._info)
        link.close()
        return False

    def _learn(self, name: str, fate: Callable[[Suspicion, str], None]) -> None:
        """What has become of a shard that was lost."""
        for run in self._runs.values():
            fate(run.suspicion, name)

    def _ended(self, name: str, link: Link, ended: asyncio.Event) -> None:
        if link.gone == "lost" and not link.dismissed:
            self._deaths.add(name)
            runs = [run for run in self._runs.values() if run.link is link]
            there = [run.suspicion for run in runs]
            for run in runs:
                run.suspicion.loses(name, there, run.told, died=name not in self._keeping)
        self._picker.leave(name, link)
        ended.set()

    async def abort(self, request_id: str, index: int) -> None:
        if (run := self._runs.get(request_id)) is not None:
            run.end(index)

    async def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        run = self._runs[request.request_id] = RequestRun(
            request, self._info, self._unread, self._follow(request.request_id)
        )  # fmt: skip
        deadline, refused = 0.0, 0.0
        self._picker.parts.add(request.tenant, request.weight, request.params.num_places)
        try:
            while True:
                try:
                    async with contextlib.aclosing(self._on_one_shard(run)) as stream:
                        async for updates in stream:
                            yield updates
                    return
                except Overloaded:  # what was accepted once is not refused because its shard died
                    if time.monotonic() >= deadline:
                        raise
                    await self._picker.news(FULL_SECONDS)
                except ShardGone as gone:
                    run.moves(gone.reason, self._sharing)
                    await self._check(run)
                    if not run.living:  # its caller has ended what was left of it
                        return
                    if gone.reason == "refused":
                        refused = refused or time.monotonic()
                        if time.monotonic() - refused > self.failover.timeout:
                            raise EngineDead("the shards of this model refuse; see the server's log") from None
                    else:
                        refused = 0.0
                    deadline = time.monotonic() + self.failover.timeout
                    self._moved(gone.reason)
                    logger.info("%s looks for another shard: %s", request.request_id, gone.reason)
        finally:
            self._picker.parts.remove(request.tenant, request.params.num_places)
            del self._runs[request.request_id]
            self._unread.taken(run)

    async def _check(self, run: RequestRun) -> None:
        """Raise what ends a request that stops shards; waits where it is not known yet whether they have died."""
        suspicion, request_id = run.suspicion, run.request.request_id
        end = time.monotonic() + self.failover.timeout
        while run.living and suspicion.is_undecided(self._certain(run)) and time.monotonic() < end:
            await asyncio.sleep(PAUSE_SECONDS)
        if not run.living:  # its caller has ended what was left of it
            return
        certain = self._certain(run)
        if suspicion.is_guilty(certain):
            names = ", ".join(suspicion.sole_losses)
            logger.error("%s: shards died while they ran nothing else: %s; it is refused", request_id, names)
            self._deaths.forget(suspicion.losses)
            raise OctavoError(f"request {request_id} is refused: it stopped {certain} engines that ran nothing else")
        if suspicion.is_undecided(certain):
            raise EngineDead("shards that ran nothing but this request cannot be reached any more; it is given up")
        if suspicion.num_losses > self.failover.moves:
            count = suspicion.num_losses
            raise EngineDead(f"{count} shards died while they ran this request; it is given up")

    def _certain(self, run: RequestRun) -> int:
        return self._deaths.certain(run.suspicion, (other.suspicion for other in self._runs.values()))

    @property
    def _longest_wait(self) -> float:
        """Seconds for a shard to be there: twice what it took the last time, where that is longer than usual."""
        return max(self.failover.timeout, 2 * (self._picker.took or 0.0))

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            seconds = self._longest_wait
            raise EngineDead(f"no shard of this model was there for {seconds:g} s; see the server's log") from None

    async def _on_one_shard(self, run: RequestRun) -> AsyncGenerator[list[SequenceUpdate], None]:
        picked = await self._begin(run)
        try:
            while run.living or run.stream.holds_updates:
                updates = await run.stream.take()
                self._unread.taken(run)
                yield updates
        except ShardGone:
            picked.gone()
            raise
        finally:
            run.leave()

    async def _begin(self, run: RequestRun) -> Picked:
        """Send a run to a shard that is there.

        Raises:
            EngineDead: none was, for too long, or the deployment has failed.
        """
        run.fit(self._info)
        with self._patience(), octavo_errors():
            async with asyncio.timeout(self._longest_wait):
                picked = await self._picker.pick(run.request)
        try:
            if not run.living:  # its caller ended what was left of it while it looked for a shard
                picked.ended(ran=False)
            else:
                if picked.prefill is not None:
                    run.trace_prefill(picked.prefill.placement)
                    await compute_prompt(run.request, picked.prefill, picked.link)
                run.fit(self._info)
                run.enter(picked)
        except BaseException:
            picked.ended(ran=False)
            raise
        return picked


async def _nobody_listens(address: Address) -> bool:
    """Whether a shard has died: its machine says that the port is closed. A stopped process still accepts."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    writer.close()
    return False


@contextlib.contextmanager
def octavo_errors() -> Iterator[None]:
    """Raise what a shard raised, and Ray's own failures as `EngineDead` or `Overloaded`."""
    try:
        yield
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, OctavoError) else error) from None
    except BackPressureError as error:
        raise Overloaded(str(error), retry_after=1.0) from None
    except (ActorDiedError, ActorUnavailableError, DeploymentUnavailableError, RequestCancelledError) as error:
        logger.warning("A shard is gone: %s", error)  # Ray names processes, machines and paths
        raise EngineDead("the shard is gone; the server's log says more") from None
