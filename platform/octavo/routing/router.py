"""What a router knows about the shards, and its decisions. It has no clock, no network and no Ray.

All of it happens in one thread. Where there are more than MANY shards, they are scored together (`board`), and the
policy looks at the best of them: to the same decision, in a tenth of a millisecond for a thousand.

Between two reports the router corrects the last one itself. It adds a request to its shard's load from the moment it
sends it there until the first report that names the request's ticket, which includes it. It treats the request's blocks
as held by the shard (`coming`) until they should have been computed. A shard that has not reported for `stale_after_s`
is judged only by this router's own requests in flight there, and no prefix is expected on it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from octavo.cost_model import Cost, attended
from octavo.load import LoadedAdapters, ShardState
from octavo.routing.board import Board, Peers
from octavo.routing.index import BlockIndex, Chain, ShardBlocks, usable
from octavo.routing.policy import POLICIES, PRIOR, Candidate, Choice, PolicyName, Query, Reason, apart, explain, packed

if TYPE_CHECKING:
    from octavo.routing.board import Numbers, Places

logger = logging.getLogger(__name__)

UNCONFIRMED_SECONDS = 10.0
"""Seconds after which a request's ticket is no longer waited for: the report that named it was lost, and later ones
include the request."""

PREFILL = "/prefill"
"""Behind a request's ticket: of its prompt, where that is computed on another shard than its stream runs on."""

MANY = 16
"""Shards up to which each is looked at by itself: for so few that is as fast."""

KEPT = 4
"""Shards that a policy looks at where there are more, beside one that holds the most of the prompt."""

BUSY_SECONDS = 10.0
"""Seconds over which `Query.busy` is averaged: longer than many prompts take, shorter than changes of the load."""

SEVERAL = 3
"""Prompts over which a shard's share of them is averaged at least. One of 20 s in each 40 s would be forgotten in ten
before the next one comes, and streams would be where that goes."""

UNKNOWN = ShardState(
    decoding=0, context=0, prefilling=0, queued=0, backlog_tokens=0, backlog_attended=0, chunk=512, max_num_seqs=64,
    blocks=1 << 20, blocks_free=1 << 20, block_size=16, mean_output=0.0, cost=PRIOR,
)  # fmt: skip
"""A shard that has not reported yet."""


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """How a router decides.

    Attributes:
        policy: one of `octavo.routing.policy.POLICIES`.
        stream_weight: seconds of waiting for a first token that one second of delay to one running stream is worth.
        stale_after_s: age in seconds from which a shard's last report is ignored.
        max_blocks_per_shard: block hashes kept per shard; about 80 bytes each.
        log_decisions: log every decision with all numbers of the formula.
        apart_weight: seconds of waiting for a first token that a second is worth for which a stream is held up, where a
            prompt may be computed on another shard than its stream runs on; 0: it may not.
    """

    policy: PolicyName = "prefix_affinity"
    stream_weight: float = 0.01
    stale_after_s: float = 2.0
    max_blocks_per_shard: int = 500_000
    log_decisions: bool = False
    apart_weight: float = 0.0


@dataclass(slots=True)
class Decision:
    """A decision and what it was made of: enough to redo it by hand.

    Attributes:
        candidates: every shard; of more than MANY the best few.
        stream_weight: as `RoutingConfig` has it.
        more: shards beside these.
    """

    ticket: str
    query: Query
    candidates: Sequence[Candidate]
    choice: Choice
    stream_weight: float
    more: int = 0


@dataclass(slots=True, eq=False)
class KnownShard:
    """What the router knows about one shard.

    Attributes:
        number: that no other shard of the router has; -1 once it has left.
        blocks: the shard's prefix cache, as its events describe it, and what requests that were sent there will add.
        known_at: watermark: everything that the shard said before this time has been applied.
        state: its last report, minus the requests that ended since; None before the first report.
        reports: number of reports received.
        adapters: digests of those that are loaded there, as it said last, and of those that were sent there since.
        adapter_seconds: that it takes to load another.
        sequences, tokens, attended: sums over requests sent there that no report includes yet.
        in_flight: sequences of this router's requests there, whether a report includes them or not.
        below: likewise of those below all others, which no other sum counts.
        fetching: blocks that such requests will hold there without computing them.
        stale: whether its reports had stopped at the last decision.
        decisions: requests sent there by reason.
        prompts: seconds of prompts that were sent there, of late, at `prompts_at`; see `busy`.
        prompt: seconds of one, as a moment of these sees it: long ones count for as long as they take.
        now: `state` with what is not in it yet; None: one of them has changed.
        counted: of its `backlog_tokens`, those that the router's have.
    """

    name: str
    number: int
    blocks: ShardBlocks
    known_at: float
    state: ShardState | None = None
    reports: int = 0
    adapters: set[str] = field(default_factory=set)
    adapter_seconds: float = LoadedAdapters().seconds
    sequences: int = 0
    tokens: int = 0
    attended: int = 0
    in_flight: int = 0
    below: int = 0
    fetching: int = 0
    stale: bool = False
    decisions: Counter[Reason] = field(default_factory=Counter)
    prompts: float = 0.0
    prompts_at: float = 0.0
    prompt: float = 0.0
    now: ShardState | None = None
    counted: int = 0

    def busy(self, now: float, more: float = 0.0) -> float:
        """Share of the recent time that prompts take there, to which another one of so many seconds is added."""
        before = self.prompts * math.exp((self.prompts_at - now) / self._over)
        self.prompts, self.prompts_at = before + more, now
        if more:
            self.prompt = (before * self.prompt + more * more) / self.prompts
        return min(1.0, self.prompts / self._over)

    @property
    def _over(self) -> float:
        """Seconds over which `busy` is averaged: as many as several of the prompts that come take."""
        return max(BUSY_SECONDS, SEVERAL * self.prompt)

    @property
    def backlog_tokens(self) -> int:
        """Tokens of prompts that are to be computed there, as far as is known."""
        return self.tokens + (0 if self.state is None else self.state.backlog_tokens)


@dataclass(slots=True, eq=False)
class _Sent:
    """One request in flight; `tokens` counts those that were not expected in the shard's cache."""

    shard: KnownShard
    sequences: int
    tokens: int
    attended: int
    fetching: int  # blocks
    coming: Sequence[bytes]  # blocks that it is expected to add there
    at: float
    unreported: bool = True  # it is in the sums of its `KnownShard`
    report: int = -1  # number of the shard's first report that includes it
    below: bool = False  # it is below all others


@dataclass(slots=True)
class _Look:
    """What a decision asks of each shard; `found` is what the index says of the chain."""

    query: Query
    chain: Chain
    found: list[tuple[int, int]]
    now: float


class Router:
    """Decides for the shards of one model.

    Attributes:
        told: called with each decision; None while nobody wants to know.
        latest: the last decision.
        backlog_tokens: of prompts that are to be computed at all shards, as far as is known.
    """

    def __init__(self, config: RoutingConfig) -> None:
        self.config = config
        self.told: Callable[[Decision], None] | None = None
        self.latest: Decision | None = None
        self.backlog_tokens = 0
        self.shards: dict[str, KnownShard] = {}
        self._sent: dict[str, _Sent] = {}  # by ticket, oldest first
        self._unconfirmed: deque[tuple[str, _Sent]] = deque()
        self._coming: list[tuple[float, int, _Sent]] = []  # heap: when to forget its blocks, number, ...
        self._news: deque[tuple[str, str, int]] = deque()  # (what happened, ticket, report)
        self._index = BlockIndex()
        self._numbered: list[KnownShard | None] = []
        self._adapters: dict[str, set[KnownShard]] = {}  # by digest: where it is loaded
        self._stale: set[KnownShard] = set()
        self._unpriced: set[KnownShard] = set()  # shards that have measured no steps
        self._windows = False  # some shard's layers have some
        self._board: Board | None = None  # from the first decision among many on
        self._changed: set[KnownShard] = set()  # which the board has otherwise
        self._rows: tuple[Sequence[str], Places] | None = None  # of the last decision among many
        self._lent: Cost | None = None  # what stands on the board for shards that have measured no steps
        self._look_at = -math.inf  # when a shard on the board may be stale
        self._turn = 0
        self._numbers = itertools.count()
        self._busy = 0.0  # see `Query.busy`
        self._asked = -math.inf  # time of the last decision

    # ---- who there is -----------------------------------------------------------------------------------------

    def join(self, name: str, now: float) -> KnownShard:
        """Add a shard; it is assumed idle, with an empty cache, until its first report."""
        if (shard := self.shards.get(name)) is None:  # to make one takes 10 us, and every decision asks for each shard
            if None not in self._numbered:
                self._numbered.append(None)
            number = self._numbered.index(None)
            shard = self.shards[name] = self._numbered[number] = KnownShard(name, number, self._blocks(name), now)
            self._index.own(shard.blocks.bit, number)
            self._rows, self._look_at = None, -math.inf
            self._touch(shard)
        return shard

    def _blocks(self, name: str) -> ShardBlocks:
        """What is known of the blocks of a shard that joins."""
        return ShardBlocks(self.config.max_blocks_per_shard, self._index)

    def leave(self, name: str) -> None:
        """Forget a shard."""
        if (shard := self.shards.pop(name, None)) is None:
            return
        self._numbered[shard.number], shard.number = None, -1
        shard.blocks.leave()
        self._load(shard, set())
        self.backlog_tokens -= shard.counted
        for kept in (self._stale, self._unpriced, self._changed):
            kept.discard(shard)
        self._rows = None

    def _load(self, shard: KnownShard, adapters: set[str]) -> None:
        """These and no other adapters are loaded there."""
        for digest in shard.adapters - adapters:
            self._adapters[digest].discard(shard)
            if not self._adapters[digest]:
                del self._adapters[digest]
        for digest in adapters - shard.adapters:
            self._adapters.setdefault(digest, set()).add(shard)
        shard.adapters = adapters

    def close(self) -> None:
        """Nothing more is decided."""

    # ---- what comes in ----------------------------------------------------------------------------------------

    def heard(
        self,
        name: str,
        state: ShardState | None,
        tickets: Iterable[str],
        known_at: float | None,
        adapters: LoadedAdapters | None = None,
    ) -> None:
        """A report came.

        Args:
            state: the shard's numbers, if they are in it.
            tickets: of the requests that `state` includes for the first time.
            known_at: everything that the shard published before this time has been applied; None if that is not known.
            adapters: those that are loaded there, if that is in it.
        """
        shard = self.shards.get(name)
        if shard is None:
            return
        if state is not None:
            shard.state = state
            shard.reports += 1
            self._windows = self._windows or state.groups is not None
        if adapters is not None:
            self._load(shard, set(adapters.digests))
            shard.adapter_seconds = adapters.seconds
        self._news.extend(("reported", ticket, shard.reports) for ticket in tickets if ticket in self._sent)
        if known_at is not None and shard.blocks.exact:
            shard.known_at = known_at
            if shard.stale:
                self._look_at = -math.inf
        if state is not None or adapters is not None:
            self._touch(shard)
            self._show()

    def completed(self, ticket: str, *, ran: bool = True) -> None:
        """A request ended or failed. If it never `ran`, its blocks are no longer expected in the shard's cache."""
        if ticket in self._sent:
            self._news.append(("ran" if ran else "withdrawn", ticket, 0))

    # ---- the decision -----------------------------------------------------------------------------------------

    def route(
        self,
        ticket: str,
        chain: Sequence[bytes],
        query: Query,
        names: Sequence[str],
        now: float,
        within: float = math.inf,
    ) -> Choice:
        """Choose among the shards `names` and count the request there at once.

        Args:
            ticket: name of the request until `completed` is called with it; routing it again replaces the decision.
            chain: hashes of the prompt's full blocks.
            within: seconds in which it is to begin: shards that let it wait longer are left out while others do not.

        Raises:
            ValueError: there is no shard.
        """
        if not names:
            raise ValueError("there is no shard to choose from")
        self.settle(now)
        self._forget(ticket)
        self._turn += 1
        query = Query(
            query.tokens,
            query.sequences,
            query.session,
            self._turn,
            self._busy,
            query.adapter,
            query.parts,
            query.below,
        )  # `replace` takes four times as long
        if query.below:
            names = packed({name: self.join(name, now).below for name in names})
        start = self._turn % len(names)  # equally good shards take turns
        blocks = Chain(chain)
        look = _Look(query, blocks, self._index.prefixes(blocks), now)
        rows = self._rows_of(names, now) if self._is_scored(query, len(names)) else None
        candidates = self._all(look, names, start) if rows is None else self._best(look, rows, start)
        choice = self._choose(query, candidates)
        if choice.score.start > within:
            others = candidates if rows is None else self._best(look, rows, start, within)
            if timely := [shard for shard in others if shard.start_seconds(query) <= within]:
                choice = self._choose(query, timely)
                candidates = others
        self.shards[choice.order[0]].decisions[choice.reason] += 1
        if self.config.log_decisions:
            logger.info("%s goes to %s (%s)\n%s", ticket, choice.order[0], choice.reason,
                        explain(query, candidates, self.config.stream_weight, self.config.apart_weight))  # fmt: skip
        more = len(names) - len(candidates)
        self.latest = Decision(ticket, query, candidates, choice, self.config.stream_weight, more)
        if self.told is not None:
            self.told(self.latest)
        if choice.prefill:
            self._forget(ticket + PREFILL)
            self._count(ticket + PREFILL, chain, replace(query, sequences=1), choice.prefill, now)
        self._count(ticket, chain, query, choice, now)
        self._note_busy(candidates, rows, now)
        return choice

    def _choose(self, query: Query, candidates: Sequence[Candidate]) -> Choice:
        config = self.config
        if config.apart_weight:
            return apart(query, candidates, config.stream_weight, config.apart_weight)
        return POLICIES[config.policy](query, candidates, config.stream_weight)

    def _note_busy(self, candidates: Sequence[Candidate], rows: Places | None, now: float) -> None:
        if rows is not None and self._board is not None:
            share = self._board.share_busy(rows)
        else:
            share = sum(shard.state.prefilling + shard.state.queued > 0 for shard in candidates) / len(candidates)
        self._busy = share + (self._busy - share) * math.exp((self._asked - now) / BUSY_SECONDS)
        self._asked = now

    def _all(self, look: _Look, names: Sequence[str], start: int) -> list[Candidate]:
        """All shards, those from place `start` on first."""
        candidates = [self._candidate(self.join(name, look.now), look) for name in [*names[start:], *names[:start]]]
        if any(shard.state.fetched_block for shard in candidates):
            candidates = _with_peers(candidates, self._givers(look))
        return candidates

    def _candidate(self, shard: KnownShard, look: _Look, cached: int | None = None) -> Candidate:
        state, adapter = self._state(shard, look.now), look.query.adapter
        seconds = shard.adapter_seconds if adapter and adapter not in shard.adapters else 0.0
        if shard.stale:
            return Candidate(shard.name, 0, state, stale=True, adapter=seconds, below=shard.below)
        if cached is None:
            cached = self._usable(shard, state, look) * state.block_size
        return Candidate(shard.name, cached, state, adapter=seconds, busy=shard.busy(look.now), below=shard.below)

    def _usable(self, shard: KnownShard, state: ShardState, look: _Look) -> int:
        """Leading blocks of the prompt that a shard holds or is about to compute, and can go on from."""
        most = (look.query.tokens - 1) // state.block_size  # an engine computes at least the last token
        found = next((count for count, bits in look.found if bits & shard.blocks.bit), 0)
        if state.groups is None:
            return min(most, found)
        return usable(look.chain, most, min(most, found), shard.blocks, state.groups, state.block_size)

    def _givers(self, look: _Look) -> list[tuple[int, KnownShard]]:
        """The two shards that hold most of a prompt, whether they have room or not, and how many tokens of it."""
        held: list[tuple[int, str]] = []
        for found, bits in self._index.prefixes(look.chain, coming=False):
            for number in self._index.owners(bits).tolist():
                shard = self._numbered[number] if number >= 0 else None
                if shard is not None and shard.state is not None and shard.state.fetched_block and not shard.stale:
                    count = min(found, (look.query.tokens - 1) // shard.state.block_size)
                    held += [(count * shard.state.block_size, shard.name)] if count else []
            if len(held) > 1:
                break
        return [(count, self.shards[name]) for count, name in heapq.nlargest(2, held)]

    # ---- many shards ------------------------------------------------------------------------------------------

    def _is_scored(self, query: Query, count: int) -> bool:
        """Whether there are so many shards that only the best are looked at."""
        by_score = self.config.policy in ("prefix_affinity", "least_loaded")
        by_load = self.config.policy == "session" and not query.session
        return count > MANY and (by_score or by_load) and not self.config.apart_weight

    def _rows_of(self, names: Sequence[str], now: float) -> Places:
        """On the board, of the shards of these names, brought up to date; quick for the last time's tuple."""
        if self._board is None:
            self._board, self._changed = Board(), set(self.shards.values())
        if self._rows is None or self._rows[0] is not names or not isinstance(names, tuple):
            self._rows = names, np.array([self.join(name, now).number for name in names])
        if now > self._look_at:
            for shard in self.shards.values():
                self._judge(shard, now)
            known = [shard.known_at for shard in self.shards.values() if not shard.stale]
            self._look_at = min(known, default=math.inf) + self.config.stale_after_s
        if self._unpriced and (cost := self.cost()) != self._lent:
            self._lent = cost
            self._changed |= self._unpriced
        self._show()
        return self._rows[1]

    def _best(self, look: _Look, among: Places, start: int, within: float = math.inf) -> list[Candidate]:
        """The best shards by the formula, and whatever else a policy's reason depends on."""
        board, query = self._board, look.query
        assert board is not None
        held = np.zeros(board.count + 1)  # the last is nobody's
        for count, bits in look.found:
            held[self._index.owners(bits)] = count
        held = held[:-1]
        for shard in self._stale:
            held[shard.number] = 0.0
        if self._windows:
            self._narrow(held, look)
        found = cached = board.tokens(held, query) if look.found or self._windows else held
        givers = self._givers(look) if board.fetches else []
        peers = Peers(givers[0][1].number, givers[0][0], givers[1][0] if givers[1:] else 0) if givers else None
        if self.config.policy != "prefix_affinity":
            cached, peers = np.zeros(board.count), None
        warm = [shard.number for shard in self._adapters.get(query.adapter, ())]
        rows = board.best(
            query, among, cached, self.config.stream_weight, KEPT, start, warm=warm, peers=peers, within=within
        )
        chosen = [each for row in rows if (each := self._numbered[row]) is not None]
        candidates = [self._candidate(each, look, int(found[each.number])) for each in chosen]
        return _with_peers(candidates, givers) if board.fetches else candidates

    def _narrow(self, held: Numbers, look: _Look) -> None:
        """Leave only those blocks that layers with windows can go on from."""
        for shard in self.shards.values():
            state = self._current(shard)
            if state.groups is not None and not shard.stale and (held[shard.number] or not state.groups.whole):
                held[shard.number] = self._usable(shard, state, look)

    def _touch(self, shard: KnownShard) -> None:
        """Something of what `_current` gives has changed."""
        shard.now = None
        if shard.number < 0:  # it has left
            return
        backlog = shard.backlog_tokens
        self.backlog_tokens += backlog - shard.counted
        shard.counted = backlog
        if self._board is not None:
            self._changed.add(shard)

    def _show(self) -> None:
        """Bring the board up to date."""
        while self._board is not None and self._changed:
            shard = self._changed.pop()
            self._board.put(
                shard.number, self._current(shard), shard.adapter_seconds, stale=shard.stale, below=shard.below
            )

    # ---- how busy a shard is ----------------------------------------------------------------------------------

    def state_of(self, name: str, now: float) -> ShardState:
        """How busy a shard is, what was sent there since its last report included."""
        return self._state(self.join(name, now), now)

    def _state(self, shard: KnownShard, now: float) -> ShardState:
        self._judge(shard, now)
        return shard.now or self._current(shard)

    def _current(self, shard: KnownShard) -> ShardState:
        """As `state_of`, where it is known whether the shard is stale."""
        if shard.now is not None:
            return shard.now
        state = shard.state or UNKNOWN
        if priced := any(state.cost):
            self._unpriced.discard(shard)
        else:
            self._unpriced.add(shard)
            state = replace(state, cost=self.cost())
            self._lent = None if state.cost != self._lent else self._lent
        if shard.stale:
            state = replace(
                state, decoding=shard.in_flight, context=0, prefilling=0, queued=0, backlog_tokens=shard.tokens,
                backlog_attended=shard.attended, blocks_free=state.blocks,
            )  # fmt: skip
        elif shard.sequences:
            if shard.fetching:
                state = replace(state, blocks_free=max(0, state.blocks_free - shard.fetching))
            state = state.with_request(shard.sequences, shard.tokens, shard.attended)
        shard.now = state if priced else None
        return state

    def _judge(self, shard: KnownShard, now: float) -> None:
        """Log once when a shard's reports stop, and when they resume."""
        age = now - shard.known_at
        if (stale := age > self.config.stale_after_s) == shard.stale:
            return
        if stale:
            logger.warning("Nothing current was heard from %s for %.1f s: it is judged by load alone", shard.name, age)
            self._stale.add(shard)
        else:
            logger.warning("%s is heard again; %d blocks are known there", shard.name, len(shard.blocks))
            self._stale.discard(shard)
        shard.stale = stale
        self._touch(shard)

    def cost(self) -> Cost:
        """The cost model of a shard that has measured steps, for one that has not."""
        states = (shard.state for shard in self.shards.values() if shard.state is not None)
        costs = (state.cost for state in states if any(state.cost))
        return next(costs, PRIOR)

    # ---- own corrections --------------------------------------------------------------------------------------

    def _count(self, ticket: str, chain: Sequence[bytes], query: Query, choice: Choice, now: float) -> None:
        shard, cached, fetched = self.shards[choice.order[0]], choice.cached, choice.score.fetched
        uncached = query.tokens - cached
        size = (shard.state or UNKNOWN).block_size
        fresh = list(chain[(cached - fetched) // size :])
        sent = _Sent(shard, query.sequences, uncached, attended(cached, uncached), fetched // size, fresh, now,
                     below=query.below)  # fmt: skip
        self._sent[ticket] = sent
        if sent.below:
            sent.unreported = False  # no report includes it
            shard.below += sent.sequences
        else:
            self._unconfirmed.append((ticket, sent))
            shard.busy(now, (shard.state or UNKNOWN).prefill_seconds(uncached, sent.attended))
            shard.sequences += sent.sequences
            shard.tokens += sent.tokens
            shard.attended += sent.attended
            shard.fetching += sent.fetching
            shard.in_flight += sent.sequences
        if query.adapter:
            self._load(shard, shard.adapters | {query.adapter})
        shard.blocks.expect(fresh)
        self._touch(shard)
        # twice the prediction: a block that comes late is still expected; one that never comes is expected a little too
        # long
        heapq.heappush(self._coming, (now + 1.0 + 2 * choice.score.first_token, next(self._numbers), sent))

    def settle(self, now: float) -> None:
        """Process `heard` and `completed` calls since the last time. `route` does so too; call it in the same
        thread."""
        while self._news:
            what, ticket, report = self._news.popleft()
            sent = self._sent.get(ticket)
            if sent is not None:
                self._uncount(sent)
                state = sent.shard.state
                if what == "reported":
                    sent.report = report
                elif not sent.below and sent.report == sent.shard.reports and state is not None:
                    # the next report may be 0.1 s away, and short requests are often repeated sooner
                    sent.shard.state = state.without_request(sent.sequences, sent.tokens, sent.attended)
                    self._touch(sent.shard)
                if what == "withdrawn":
                    sent.shard.blocks.expect_no_more(sent.coming)
            if what != "reported":
                self._forget(ticket)
        while self._unconfirmed and self._unconfirmed[0][1].at < now - UNCONFIRMED_SECONDS:
            ticket, sent = self._unconfirmed.popleft()
            if sent.unreported and self._sent.get(ticket) is sent:
                self._forget(ticket)
        while self._coming and self._coming[0][0] < now:
            sent = heapq.heappop(self._coming)[2]
            sent.shard.blocks.expect_no_more(sent.coming)
        self._show()

    def _forget(self, ticket: str) -> None:
        sent = self._sent.pop(ticket, None)
        if sent is not None:
            if sent.below:
                sent.shard.below -= sent.sequences
            else:
                sent.shard.in_flight -= sent.sequences
            self._uncount(sent)

    def _uncount(self, sent: _Sent) -> None:
        """Take the request out of the sums: a report includes it, or it has ended."""
        if sent.unreported:
            sent.shard.sequences -= sent.sequences
            sent.shard.tokens -= sent.tokens
            sent.shard.attended -= sent.attended
            sent.shard.fetching -= sent.fetching
        sent.unreported = False
        self._touch(sent.shard)


def _with_peers(candidates: list[Candidate], givers: list[tuple[int, KnownShard]]) -> list[Candidate]:
    """The same with who else holds more of the prompt."""
    found = []
    for each in candidates:
        count, peer = next(((count, shard.name) for count, shard in givers if shard.name != each.name), (0, ""))
        takes = each.state.fetched_block and not each.stale and count > each.cached
        found.append(replace(each, peer=peer, peer_cached=count) if takes else each)
    return found
