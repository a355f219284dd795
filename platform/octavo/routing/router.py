"""What a router knows about the shards, and its decisions. It has no clock, no network and no Ray.

Reports (`heard`) and block events (`KnownShard.blocks`) may arrive in another thread than `route` runs in. The two
threads share only a queue and values that are replaced as a whole, so neither ever waits for the other.

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

from octavo.cost_model import Cost, attended
from octavo.load import LoadedAdapters, ShardState
from octavo.routing.index import ShardBlocks, matched
from octavo.routing.policy import POLICIES, PRIOR, Candidate, Choice, PolicyName, Query, Reason, apart, explain

logger = logging.getLogger(__name__)

UNCONFIRMED_SECONDS = 10.0
"""Seconds after which a request's ticket is no longer waited for: the report that named it was lost, and later ones
include the request."""

PREFILL = "/prefill"
"""Behind a request's ticket: of its prompt, where that is computed on another shard than its stream runs on."""

BUSY_SECONDS = 10.0
"""Seconds over which `Query.busy` is averaged: longer than many prompts take, shorter than changes of the load."""

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
        max_blocks_per_shard: block hashes kept per shard; about 130 bytes each.
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


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision and what it was made of: enough to redo it by hand.

    Attributes:
        candidates: every shard that was looked at.
        stream_weight: as `RoutingConfig` has it.
    """

    ticket: str
    query: Query
    candidates: Sequence[Candidate]
    choice: Choice
    stream_weight: float


@dataclass(slots=True, eq=False)
class KnownShard:
    """What the router knows about one shard.

    Attributes:
        blocks: the shard's prefix cache, as its events describe it.
        known_at: watermark: everything that the shard said before this time has been applied.
        state: its last report, minus the requests that ended since; None before the first report.
        reports: number of reports received.
        coming: block hash -> number of requests, sent or queued there, that are expected to add the block.
        adapters: digests of those that are loaded there, as it said last, and of those that were sent there since.
        adapter_seconds: that it takes to load another.
        sequences, tokens, attended: sums over requests sent there that no report includes yet.
        in_flight: sequences of this router's requests there, whether a report includes them or not.
        stale: whether its reports had stopped at the last decision.
        decisions: requests sent there by reason.
        prompts: seconds of prompts that were sent there, of late, at `prompts_at`; see `busy`.
    """

    blocks: ShardBlocks
    known_at: float
    state: ShardState | None = None
    reports: int = 0
    coming: dict[bytes, int] = field(default_factory=dict)
    adapters: set[str] = field(default_factory=set)
    adapter_seconds: float = LoadedAdapters().seconds
    sequences: int = 0
    tokens: int = 0
    attended: int = 0
    in_flight: int = 0
    stale: bool = False
    decisions: Counter[Reason] = field(default_factory=Counter)
    prompts: float = 0.0
    prompts_at: float = 0.0

    def busy(self, now: float, more: float = 0.0) -> float:
        """Share of the recent time that prompts take there, to which another one of so many seconds is added."""
        self.prompts = self.prompts * math.exp((self.prompts_at - now) / BUSY_SECONDS) + more
        self.prompts_at = now
        return min(1.0, self.prompts / BUSY_SECONDS)

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
    coming: Sequence[bytes]  # blocks that it is expected to add there
    at: float
    unreported: bool = True  # it is in the sums of its `KnownShard`
    report: int = -1  # number of the shard's first report that includes it


class Router:
    """Decides for the shards of one model.

    Attributes:
        told: called with each decision; None while nobody wants to know.
        latest: the last decision.
    """

    def __init__(self, config: RoutingConfig) -> None:
        self.config = config
        self.told: Callable[[Decision], None] | None = None
        self.latest: Decision | None = None
        self.shards: dict[str, KnownShard] = {}
        self._sent: dict[str, _Sent] = {}  # by ticket, oldest first
        self._unconfirmed: deque[tuple[str, _Sent]] = deque()
        self._coming: list[tuple[float, int, _Sent]] = []  # heap: when to forget its blocks, number, ...
        self._news: deque[tuple[str, str, int]] = deque()  # (what happened, ticket, report), from any thread
        self._turn = 0
        self._numbers = itertools.count()
        self._busy = 0.0  # see `Query.busy`
        self._asked = -math.inf  # time of the last decision

    # ---- who there is -----------------------------------------------------------------------------------------

    def join(self, name: str, now: float) -> KnownShard:
        """Add a shard; it is assumed idle, with an empty cache, until its first report."""
        if (shard := self.shards.get(name)) is None:  # to make one takes 10 us, and every decision asks for each shard
            shard = self.shards[name] = KnownShard(ShardBlocks(self.config.max_blocks_per_shard), now)
        return shard

    def leave(self, name: str) -> None:
        """Forget a shard."""
        self.shards.pop(name, None)

    def close(self) -> None:
        """Nothing more is decided."""

    # ---- what comes in: any thread ----------------------------------------------------------------------------

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
        if adapters is not None:
            shard.adapters, shard.adapter_seconds = set(adapters.digests), adapters.seconds
        self._news.extend(("reported", ticket, shard.reports) for ticket in tickets if ticket in self._sent)
        if known_at is not None and shard.blocks.exact:
            shard.known_at = known_at

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
        query = replace(query, turn=self._turn, busy=self._busy)
        start = self._turn % len(names)  # equally good shards take turns
        candidates = [self._candidate(name, chain, query, now) for name in [*names[start:], *names[:start]]]
        if any(shard.state.fetched_block for shard in candidates):
            candidates = self._with_peers(candidates, chain, query)
        choice = self._choose(query, candidates)
        if choice.score.start > within and (timely := [c for c in candidates if c.start_seconds(query) <= within]):
            choice = self._choose(query, timely)
        self.shards[choice.order[0]].decisions[choice.reason] += 1
        if self.config.log_decisions:
            logger.info("%s goes to %s (%s)\n%s", ticket, choice.order[0], choice.reason,
                        explain(query, candidates, self.config.stream_weight))  # fmt: skip
        self.latest = Decision(ticket, query, candidates, choice, self.config.stream_weight)
        if self.told is not None:
            self.told(self.latest)
        if choice.prefill:
            self._forget(ticket + PREFILL)
            first = choice.prefill_cached, 0, choice.prefill_seconds
            self._count(ticket + PREFILL, chain, replace(query, sequences=1), choice.prefill, *first, now)
        found = choice.cached, choice.score.fetched, choice.score.first_token
        self._count(ticket, chain, query, choice.order[0], *found, now)
        self._note_busy(candidates, now)
        return choice

    def _choose(self, query: Query, candidates: Sequence[Candidate]) -> Choice:
        config = self.config
        if config.apart_weight:
            return apart(query, candidates, config.stream_weight, config.apart_weight)
        return POLICIES[config.policy](query, candidates, config.stream_weight)

    def _note_busy(self, candidates: Sequence[Candidate], now: float) -> None:
        share = sum(shard.state.prefilling + shard.state.queued > 0 for shard in candidates) / len(candidates)
        self._busy = share + (self._busy - share) * math.exp((self._asked - now) / BUSY_SECONDS)
        self._asked = now

    def _candidate(self, name: str, chain: Sequence[bytes], query: Query, now: float) -> Candidate:
        shard = self.join(name, now)
        state = self._state(name, shard, now)
        cold = query.adapter and query.adapter not in shard.adapters
        adapter = shard.adapter_seconds if cold else 0.0
        if shard.stale:
            return Candidate(name, 0, state, stale=True, adapter=adapter)
        usable = (query.tokens - 1) // state.block_size  # an engine computes at least the last token
        held = chain[:usable], shard.blocks.hashes, shard.coming, state.groups, state.block_size
        cached = matched(*held) * state.block_size
        return Candidate(name, cached, state, adapter=adapter, busy=shard.busy(now))

    def _with_peers(self, candidates: list[Candidate], chain: Sequence[bytes], query: Query) -> list[Candidate]:
        """The same with who else holds more of the prompt: the two that hold most, whether they have room or not."""
        held: list[tuple[int, str]] = []
        for name, shard in self.shards.items():
            if shard.state is not None and shard.state.fetched_block and not shard.stale:
                usable = (query.tokens - 1) // shard.state.block_size
                if count := matched(chain[:usable], shard.blocks.hashes) * shard.state.block_size:
                    held.append((count, name))
        best = heapq.nlargest(2, held)
        found = []
        for each in candidates:
            count, peer = next((most for most in best if most[1] != each.name), (0, ""))
            takes = each.state.fetched_block and not each.stale and count > each.cached
            found.append(replace(each, peer=peer, peer_cached=count) if takes else each)
        return found

    def state_of(self, name: str, now: float) -> ShardState:
        """How busy a shard is, what was sent there since its last report included."""
        return self._state(name, self.join(name, now), now)

    def _state(self, name: str, shard: KnownShard, now: float) -> ShardState:
        state = shard.state or UNKNOWN
        if not any(state.cost):
            state = replace(state, cost=self.cost())
        self._judge(name, shard, now)
        if shard.stale:
            return replace(
                state, decoding=shard.in_flight, context=0, prefilling=0, queued=0, backlog_tokens=shard.tokens,
                backlog_attended=shard.attended, blocks_free=state.blocks,
            )  # fmt: skip
        return state.with_request(shard.sequences, shard.tokens, shard.attended) if shard.sequences else state

    def _judge(self, name: str, shard: KnownShard, now: float) -> None:
        """Log once when a shard's reports stop, and when they resume."""
        age = now - shard.known_at
        stale = age > self.config.stale_after_s
        if stale and not shard.stale:
            logger.warning("Nothing current was heard from %s for %.1f s: it is judged by load alone", name, age)
        elif shard.stale and not stale:
            logger.warning("%s is heard again; %d blocks are known there", name, len(shard.blocks.hashes))
        shard.stale = stale

    def cost(self) -> Cost:
        """The cost model of a shard that has measured steps, for one that has not."""
        states = (shard.state for shard in self.shards.values() if shard.state is not None)
        costs = (state.cost for state in states if any(state.cost))
        return next(costs, PRIOR)

    # ---- own corrections --------------------------------------------------------------------------------------

    def _count(
        self, ticket: str, chain: Sequence[bytes], query: Query, name: str, cached: int, fetched: int,
        first_token: float, now: float,
    ) -> None:  # fmt: skip
        shard = self.shards[name]
        uncached = query.tokens - cached
        fresh = chain[(cached - fetched) // (shard.state or UNKNOWN).block_size :]
        sent = _Sent(shard, query.sequences, uncached, attended(cached, uncached), fresh, now)
        self._sent[ticket] = sent
        self._unconfirmed.append((ticket, sent))
        shard.busy(now, (shard.state or UNKNOWN).prefill_seconds(uncached, sent.attended))
        shard.sequences += sent.sequences
        shard.tokens += sent.tokens
        shard.attended += sent.attended
        shard.in_flight += sent.sequences
        if query.adapter:
            shard.adapters.add(query.adapter)
        for block in fresh:
            shard.coming[block] = shard.coming.get(block, 0) + 1
        # twice the prediction: a block that comes late is still expected; one that never comes is expected a little too
        # long
        heapq.heappush(self._coming, (now + 1.0 + 2 * first_token, next(self._numbers), sent))

    def settle(self, now: float) -> None:
        """Process `heard` and `completed` calls since the last time. `route` does so too; call it in the same
        thread."""
        while self._news:
            what, ticket, report = self._news.popleft()
            sent = self._sent.get(ticket)
            if sent is not None:
                _uncount(sent)
                state = sent.shard.state
                if what == "reported":
                    sent.report = report
                elif sent.report == sent.shard.reports and state is not None:
                    # the next report may be 0.1 s away, and short requests are often repeated sooner
                    sent.shard.state = state.without_request(sent.sequences, sent.tokens, sent.attended)
                if what == "withdrawn":
                    _arrived(sent)
            if what != "reported":
                self._forget(ticket)
        while self._unconfirmed and self._unconfirmed[0][1].at < now - UNCONFIRMED_SECONDS:
            ticket, sent = self._unconfirmed.popleft()
            if sent.unreported and self._sent.get(ticket) is sent:
                self._forget(ticket)
        while self._coming and self._coming[0][0] < now:
            _arrived(heapq.heappop(self._coming)[2])

    def _forget(self, ticket: str) -> None:
        sent = self._sent.pop(ticket, None)
        if sent is not None:
            _uncount(sent)
            sent.shard.in_flight -= sent.sequences


def _uncount(sent: _Sent) -> None:
    """Take the request out of the sums: a report includes it, or it has ended."""
    if sent.unreported:
        sent.shard.sequences -= sent.sequences
        sent.shard.tokens -= sent.tokens
        sent.shard.attended -= sent.attended
    sent.unreported = False


def _arrived(sent: _Sent) -> None:
    """Stop expecting the request's blocks; a second call does nothing."""
    coming = sent.shard.coming
    for block in sent.coming:
        count = coming.pop(block, 0)
        if count > 1:
            coming[block] = count - 1
    sent.coming = ()
