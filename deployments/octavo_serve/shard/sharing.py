"""A shard and the others of its model: it gives them KV blocks and asks them for some.

Who the others are gateways say, over their links. What a shard has, and whether it is worth fetching, its router and
`octavo.engine.fetches` know. Everything here happens in threads, one for each other shard that asks or is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from octavo.engine.arrivals import PEER_LOTS, lot_of
from octavo.engine.disk_cache import block_form
from octavo.engine.served_engine import ServedEngine
from octavo.errors import ConfigError
from octavo.kvcache.slot_file import CHECK_BYTES, checksum
from octavo.kvcache.tier import Bytes, Failure
from octavo.models.packed_cache import content
from octavo.source import Source
from octavo_serve.wire.blocks import MAX_WANTED, Broken, Form, Hottest, Wanted, Wire, joined
from octavo_serve.wire.challenge import SECRET_BYTES, Challenge
from octavo_serve.wire.messages import Address

logger = logging.getLogger("ray.serve")

CONNECT_SECONDS = 1.0
READ_SECONDS = 10.0
"""That a lot may take, however long computing it would; at most, for it is given up when that is sooner."""
PAUSE_SECONDS = 1.0
"""After a failure, until a shard is asked again."""
OTHER_SECONDS = 60.0
"""The same where its blocks are of another form."""
IDLE_SECONDS = 600.0
"""Without a question, until a connection is ended; the next question opens another."""
COPY_SECONDS = 10.0
"""That the engine may take to come to it: a step may be long."""
MAX_ASKERS = 256
"""Connections; further ones are ended at once."""
MAX_STRANGERS = 64
"""Of them, those that have not shown yet that they know the secret: they cannot take the places of those that do."""
MAX_GIVEN = 8
"""Answers that are on their way at once, each of which may take 64 MiB for as long as its asker reads."""
ACCEPT_SECONDS = 0.1
"""After a connection that could not be taken in, until the next one is tried."""

WARM_FROM = 4
"""Other shards that a new one asks for what is hot there."""
GIVING_SECONDS, QUIET_SECONDS = 3.0, 1.0
"""That a shard which leaves goes on giving, at most, and after the last question."""

_COUNT = 4


class PeerShard:
    """Another shard as a source of blocks (`octavo.kvcache.tier.BlockSource`); one thread reads.

    Args:
        own: what blocks are here.
        failures: where they are counted.
    """

    def __init__(self, address: Address, own: Form, failures: Counter[Failure]) -> None:
        self.address, self.failures = address, failures
        self._own = own
        self._wire: Wire | None = None
        self._again = 0.0  # when it may be asked

    def read(self, hashes: Sequence[bytes], into: Bytes) -> int:
        """As in `BlockSource`."""
        if time.monotonic() < self._again:
            return 0
        good = 0
        try:
            wire = self._wire = self._wire or self._connect()
            if self._again == float("inf"):  # somebody has closed it meanwhile
                raise ConnectionError("it is given up")
            end = time.monotonic() + READ_SECONDS
            while (
                good < len(hashes)
                and time.monotonic() < end
                and (count := _ask(wire, hashes[good : good + MAX_WANTED]))
            ):
                for block_hash, row in zip(hashes[good : good + count], into[good:], strict=False):
                    check = wire.take(CHECK_BYTES)
                    wire.take_into(row.data)
                    if check != checksum(block_hash, row):
                        self.failures["checksum"] += len(hashes) - good
                        self._leave()
                        return good
                    good += 1
        except _OtherForm:
            self.failures["gone"] += len(hashes)
            self._again = max(self._again, time.monotonic() + OTHER_SECONDS)
            logger.warning("A shard at %s has other KV blocks: it is not asked", self.address.host)
        except Broken as error:
            self.failures["io"] += len(hashes) - good
            self._leave()
            self._again = max(self._again, time.monotonic() + PAUSE_SECONDS)
            logger.info("KV blocks did not come from %s: %s", self.address.host, error)
        else:
            self.failures["gone"] += len(hashes) - good
        return good

    def _connect(self) -> Wire:
        address = self.address
        wire = Wire(socket.create_connection((address.host, address.port), CONNECT_SECONDS), CONNECT_SECONDS)
        try:
            wire.prove(Challenge(bytes.fromhex(address.secret), opens=True))
            if wire.hear(Form) != self._own:
                raise _OtherForm
        except BaseException:
            wire.close()
            raise
        return wire

    def hottest(self, most: int) -> list[bytes]:
        """Hashes of the blocks that came back most often there; over a connection of its own, from any thread.

        Raises:
            one of `Broken`: they could not be asked for.
        """
        try:
            with contextlib.closing(self._connect()) as wire:
                wire.within(READ_SECONDS)
                wire.say(Hottest(min(most, MAX_WANTED)))
                found: Wanted = wire.hear(Wanted)
                return found.split()
        except _OtherForm:
            return []

    def close(self) -> None:
        """As in `BlockSource`; who reads is told."""
        self._again = float("inf")
        self._leave()

    def _leave(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()


def _ask(wire: Wire, hashes: Sequence[bytes]) -> int:
    """Ask for blocks; how many of the first ones follow, which may be fewer than there are."""
    wire.within(READ_SECONDS)
    wire.say(joined(hashes))
    if (count := int.from_bytes(wire.take(_COUNT), "big")) > len(hashes):
        raise ConnectionError(f"{count} blocks for {len(hashes)}")
    return count


class _OtherForm(Exception):
    """A shard's blocks are of no use here."""


class PeerShards:
    """The other shards (`octavo.kvcache.tier.Peers`).

    Attributes:
        own: what blocks are here.
        addresses: where the others give blocks, by name.
    """

    def __init__(self, own: Form, addresses: Mapping[str, Address]) -> None:
        self.failures: Counter[Failure] = Counter()
        self.addresses = addresses
        self.own = own
        self._known: dict[str, PeerShard] = {}

    def find(self, name: str) -> PeerShard | None:
        """As in `Peers`."""
        address, known = self.addresses.get(name), self._known.get(name)
        if known is not None and known.address == address:
            return known
        for gone in self._known.keys() - self.addresses.keys() | ({name} if known else set()):
            self._known.pop(gone).close()
        if address is None:
            return None
        found = self._known[name] = PeerShard(address, self.own, self.failures)
        return found

    def close(self) -> None:
        """As in `Peers`."""
        known, self._known = self._known, {}
        for each in known.values():
            each.close()


class Sharing:
    """A shard's dealings with the others.

    It listens at once, and answers once it has read the checkpoint's files, whose sum is a part of a block's form.

    Args:
        engine: whose blocks are given, and who fetches others.
        source: of its model.
        host: one of this machine's addresses.
        name: of the shard.

    Raises:
        ConfigError: its blocks cannot be copied.
    """

    def __init__(self, engine: ServedEngine, source: Source, host: str, name: str) -> None:
        if engine.engine.executor.kv is None:
            raise ConfigError("share_kv_cache is for models that generate text, in one process: leave it off")
        if engine.engine.pool.groups.windowed:
            raise ConfigError("share_kv_cache is not for models whose windows give blocks back: leave it off")
        if engine.engine.executor.states is not None:
            raise ConfigError("share_kv_cache is not for models with recurrent layers, whose states no block holds")
        self._engine, self._source, self._name = engine, source, name
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._peers: PeerShards | None = None
        self._addresses: dict[str, Address] = {}
        self._copying = threading.Lock()
        self._giving = threading.BoundedSemaphore(MAX_GIVEN)
        self._askers: set[Wire] = set()
        self._strangers: set[Wire] = set()
        self._closed = False
        self._gave = 0.0
        self._warmed = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.address = Address(host, self._listener.getsockname()[1], self._secret.hex())
        threading.Thread(target=self._run, name="octavo-kv-port", daemon=True).start()

    def introduce(self, addresses: Mapping[str, Address]) -> None:
        """From now on these are the shards of the model, by name; this one may be among them."""
        self._addresses = {name: address for name, address in addresses.items() if name != self._name}
        if self._peers is not None:
            self._peers.addresses = self._addresses
            self._begin_warm()

    def inherit(self, name: str) -> None:
        """Another shard is about to leave: what is hot there is fetched, as far as there is room."""
        if self._peers is not None:
            threading.Thread(target=self._warm, args=([name],), name="octavo-kv-inherits", daemon=True).start()

    def bring(self, name: str, hashes: list[bytes]) -> None:
        """Blocks at another shard are wanted soon."""
        self._engine.call(lambda engine: engine.bring(name, hashes))

    def _begin_warm(self) -> None:
        """Once, when the others are known first: fetch what is hot there."""
        if self._addresses and not self._warmed:
            self._warmed = True
            names = random.sample(list(self._addresses), min(WARM_FROM, len(self._addresses)))
            threading.Thread(target=self._warm, args=(names,), name="octavo-kv-warms", daemon=True).start()

    def _warm(self, names: list[str]) -> None:
        """Fetch what is hot at some shards, into at most half of the cache."""
        assert self._peers is not None
        for name in names:
            address = self._addresses.get(name)
            if address is None:
                continue
            try:
                hot = PeerShard(address, self._peers.own, self._peers.failures).hottest(
                    self._engine.engine.pool.num_blocks // 2 // len(names)
                )
            except Broken as error:
                logger.info("Nobody says what is hot at %s: %s", address.host, error)
                continue
            self._engine.call(lambda engine, name=name, hot=hot: engine.warm(name, hot))  # type: ignore[misc]

    async def leave(self) -> None:
        """Go on giving for a moment: streams that move take their blocks along, an heir what is hot."""
        self._gave, end = time.monotonic(), time.monotonic() + GIVING_SECONDS
        while self._addresses and time.monotonic() < min(end, self._gave + QUIET_SECONDS):
            await asyncio.sleep(0.05)
        self.close()

    def close(self) -> None:
        """Give nothing more."""
        self._closed = True
        with contextlib.suppress(OSError):  # closing alone wakes nobody who waits for a connection
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in list(self._askers):
            wire.close()

    def _run(self) -> None:
        """Become ready, then let others in."""
        engine = self._engine.engine
        kv = engine.executor.kv
        assert kv is not None
        form = Form(block_form(content(self._source), engine.config, engine.executor), kv.block_bytes)
        peers = self._peers = PeerShards(form, self._addresses)
        self._engine.on_engine = lambda engine: engine.share(peers)
        self._engine.call(self._engine.on_engine)
        self._begin_warm()
        while not self._closed:
            try:
                self._let_in(form)
            except (OSError, RuntimeError) as error:  # there are no files or threads left, or it is closed
                if not self._closed:
                    logger.warning("A shard that wants KV blocks is not let in: %s", error)
                    time.sleep(ACCEPT_SECONDS)

    def _let_in(self, form: Form) -> None:
        """Wait for somebody, and answer him in a thread of his own."""
        connected, _ = self._listener.accept()
        if len(self._askers) >= MAX_ASKERS or len(self._strangers) >= MAX_STRANGERS:
            connected.close()
            return
        wire = Wire(connected, CONNECT_SECONDS)
        thread = threading.Thread(target=self._answer, args=(wire, form), name="octavo-kv-gives", daemon=True)
        self._askers.add(wire)
        self._strangers.add(wire)
        try:
            thread.start()
        except RuntimeError:
            self._forget(wire)
            raise

    def _forget(self, wire: Wire) -> None:
        self._askers.discard(wire)
        self._strangers.discard(wire)
        wire.close()

    def _answer(self, wire: Wire, form: Form) -> None:
        """Answer one other shard until it leaves."""
        try:
            wire.prove(Challenge(self._secret, opens=False))
            self._strangers.discard(wire)
            wire.within(READ_SECONDS)
            wire.say(form)
            while True:
                wire.within(IDLE_SECONDS)
                question = wire.hear(Wanted | Hottest)
                if isinstance(question, Wanted):
                    self._give(wire, question.split(), form)
                else:
                    most = min(max(question.most, 0), MAX_WANTED)
                    hot = self._engine.call(lambda engine, most=most: engine.pool.hottest(most))  # type: ignore[misc]
                    wire.say(joined(hot.result(COPY_SECONDS)))
        except Broken:
            pass  # it has left, is too slow, or is none of ours
        except Exception:  # of the engine, which has perhaps ended
            logger.warning("KV blocks could not be given to another shard", exc_info=True)
        finally:
            self._forget(wire)

    def _give(self, wire: Wire, hashes: list[bytes], form: Form) -> None:
        if not self._giving.acquire(timeout=READ_SECONDS):
            raise TimeoutError("too many want blocks at once")
        try:
            self._give_in_turn(wire, hashes, form)
        finally:
            self._giving.release()

    def _give_in_turn(self, wire: Wire, hashes: list[bytes], form: Form) -> None:
        self._gave = time.monotonic()
        engine = self._engine.engine
        lots = 1 if engine.state().decoding else PEER_LOTS  # where no stream feels it, for a step may be long
        data = self._copied(hashes[: lots * lot_of(form.block_bytes)], form)
        wire.within(READ_SECONDS)
        wire.put(len(data).to_bytes(_COUNT, "big"))
        for block_hash, row in zip(hashes, data, strict=False):
            wire.put(checksum(block_hash, row))
            wire.put(row.data)

    def _copied(self, hashes: list[bytes], form: Form) -> Bytes:
        """The first of these blocks that are in the cache, and those after them that its tier has."""
        with self._copying:  # a lot between two steps, whoever asks
            call = self._engine.call(lambda engine: engine.copy_blocks(hashes))
            data = call.result(COPY_SECONDS)()
        fetches, rest = self._engine.engine.scheduler.fetches, hashes[len(data) :]
        if fetches is None or fetches.tier is None or not (more := fetches.tier.lookup(rest)):
            return data
        lower = np.empty((more, form.block_bytes), np.uint8)
        count = fetches.tier.read(rest[:more], lower)
        return np.concatenate([data, lower[:count]])
