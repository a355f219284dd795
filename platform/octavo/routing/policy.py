"""Chooses the shard for a request: the one with the lowest score, in predicted seconds.

    score = wait + queue + adapter + fetch + own + others

    wait     beyond the queue, until decoding sequences have left the places and KV blocks that are needed
    queue    the rest of the step under way, and the backlog: prompts that are there before this one; the step may be
             one of requests below all others, which nothing else here counts
    adapter  until the shard has read the request's adapter, unless it is loaded there
    fetch    until blocks that another shard has more of this prompt have come from there, where that is worth it
    own      the steps of this prompt's tokens that are neither cached nor fetched
    others   (next + stream_weight * decoding) * (compute time of these tokens)
    next     busy / (1 - busy)

All but the last are predictions from what the shard says of itself: the cost model that it fitted to its measured steps
(`octavo.load.ShardState`), and how long adapters and blocks took to come there of late. So a slow shard says so itself.
Together they are the time to the first token. A shard where the first two exceed the model's bound
(`octavo.routing.admission`) is chosen only if all others are like it.

`others` is what the request costs everybody else. Its uncached tokens delay each decoding sequence by their compute
time (weighted by `stream_weight`). When prompts keep the shards busy for a share `busy` of the time, they also delay
the requests that come later, by `busy / (1 - busy)` times the compute time in total (mean wait of an M/G/1 queue). On
an idle fleet that term is 0, so a burst on one prefix spreads at once.

A hot prefix spreads by itself: when its holder has more queued work than it costs to compute the prefix again
elsewhere, another shard's score is lower, and that shard holds the prefix from then on.

    prefix_affinity  lowest score
    least_loaded     lowest score if no shard held anything of the prompt
    round_robin      each in turn
    session          the same shard for the same session, by rendezvous hashing (Thaler, Ravishankar 1998): a shard that
                     joins or leaves moves only its own share of the sessions. Without a session: least_loaded

Each is a pure function of a query and of a snapshot of the shards.

Requests below all others (lines of batches) go to the first shard by name that has fewer than `PACKED` of them from
this router. Where all have as many, the policy chooses among those that have fewer than `PACKED` more than any. So a
few of them keep one shard busy and not all, every gateway chooses the same one without a word to the others, and who
comes is sent past it where another one does as well.

With `apart_weight`, a prompt may be computed on one shard and its stream run on another, which fetches the blocks then
(`apart`). Of all shards for the whole, and all pairs for the two parts, the lowest score is taken, with two terms more:

    elsewhere  score of the prompt on the first shard
    held       apart_weight * busy / (1 - busy) * (mean answer * step)

`held` is how long prompts will hold the stream up where it runs, by the share of the recent time that those sent there
take, and a second of what a prompt holds others up counts for `apart_weight` seconds, too. So streams gather where
few prompts are, and prompts where few streams are; no shard has a role that it does not earn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Literal, NamedTuple

from octavo.cost_model import Cost, attended
from octavo.load import ShardState
from octavo.request import Placement

Reason = Literal["prefix", "load", "spread", "fetch", "apart", "stale", "turn", "session"]
PolicyName = Literal["prefix_affinity", "least_loaded", "round_robin", "session"]

PRIOR = Cost(step=5e-3, token=5e-5, sequence=1e-4, attended=1e-9, context=1e-8)
"""Cost model while no shard has measured a step. Only its proportions matter, and only for the first few requests."""

PACKED = 8
"""Requests below all others that one router sends to one shard before another gets any: a step of so many takes about
as long as one of a single sequence."""

BUSIEST = 0.8
"""Upper bound of `busy`; it limits `next` to 4 seconds of waiting per second of work."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a policy needs to know about a request.

    Attributes:
        tokens: of the prompt.
        sequences: number of sequences it becomes (`n` or `best_of`).
        session: name of the session that the request belongs to, or "".
        turn: number of this request at this router.
        busy: share of the recent time in which shards had a backlog, 0 to 1.
        adapter: digest of the adapter that it is computed with, or "".
        parts: whether its prompt may be computed on another shard than its stream runs on.
        below: it is below all others.
    """

    tokens: int
    sequences: int = 1
    session: str = ""
    turn: int = 0
    busy: float = 0.0
    adapter: str = ""
    parts: bool = False
    below: bool = False


@dataclass(slots=True)
class Candidate:
    """A shard as the router sees it now.

    Attributes:
        cached: leading tokens of the prompt that the shard holds or is about to compute.
        state: its last report, plus the requests sent there since.
        stale: whether its reports stopped. Then `cached` is 0, and `state` counts only this router's own requests
            there.
        adapter: seconds until it has read the request's adapter; 0 where that is loaded, or none is asked for.
        peer: another shard, which holds more of the prompt and gives it blocks; "" where there is none.
        peer_cached: leading tokens of the prompt that are there.
        busy: share of the recent time that prompts which were sent there take, 0 to 1.
        below: sequences below all others that this router has there, which `state` does not count.
    """

    name: str
    cached: int
    state: ShardState
    stale: bool = False
    adapter: float = 0.0
    peer: str = ""
    peer_cached: int = 0
    busy: float = 0.0
    below: int = 0

    def start_seconds(self, query: Query) -> float:
        """Until the request begins to be computed there."""
        return self.state.start_seconds(query.tokens, query.sequences)


@dataclass(slots=True)
class Score:
    """The formula's terms in seconds; `total` is what shards are compared by, `first_token` the prediction.

    Attributes:
        fetched: tokens whose blocks are fetched; 0 where that is not worth it.
        elsewhere: until the prompt is computed on another shard, if it is.
    """

    wait: float
    queue: float
    adapter: float
    own: float
    others: float
    fetch: float = 0.0
    fetched: int = 0
    elsewhere: float = 0.0

    @property
    def start(self) -> float:
        return self.wait + self.queue

    @property
    def first_token(self) -> float:
        return self.elsewhere + self.start + self.adapter + self.fetch + self.own

    @property
    def total(self) -> float:
        return self.first_token + self.others


@dataclass(slots=True)
class Choice:
    """Where a request goes and why.

    Attributes:
        order: every shard, best first; a full shard is passed over for the next.
        reason: "prefix": it holds the longest prefix; "spread": another shard holds a longer one but would take longer;
            "fetch": the same, and it fetches from there what it lacks; "load": no shard holds any of it, or the policy
            ignores caches; "stale": as "load", for a shard whose reports stopped; "turn" and "session": as the policy
            says.
        cached: prompt tokens predicted to be found in its cache, those that are fetched included.
        score: of the first shard.
        peer: from where it fetches; "" where it does not.
        peer_blocks: how many of the prompt's first blocks are there.
        prefill: what was chosen for the prompt, where that is computed first on another shard than its stream runs on.
    """

    order: list[str]
    reason: Reason
    cached: int
    score: Score
    peer: str = ""
    peer_blocks: int = 0
    prefill: Choice | None = None

    def placement(self, ticket: str) -> Placement:
        """What the request's shard is told of it."""
        peer, prefill = (self.peer, self.peer_blocks), "" if self.prefill is None else self.prefill.order[0]
        return Placement(ticket, self.order[0], self.reason, self.cached, self.score.first_token, *peer, prefill)


def score(query: Query, shard: Candidate, cached: int, stream_weight: float) -> Score:
    """The formula above, for a shard that finds `cached` tokens of a prompt, and fetches more where that is better."""
    found = _score(query, shard, cached, stream_weight)
    if shard.peer_cached <= cached:
        return found
    fetched = shard.peer_cached - cached
    seconds = shard.state.fetch_seconds(fetched)
    other = _score(query, shard, shard.peer_cached, stream_weight, seconds, fetched)
    return other if other.total < found.total else found


def _score(
    query: Query,
    shard: Candidate,
    cached: int,
    stream_weight: float,
    fetch: float = 0.0,
    fetched: int = 0,
    elsewhere: float = 0.0,
) -> Score:
    state = shard.state
    uncached = query.tokens - cached
    compute = state.prefill_seconds(uncached, attended(cached, uncached))
    steps = max(1.0, uncached / max(state.chunk, 1))
    busy = min(query.busy, BUSIEST)
    return Score(
        wait=state.wait_seconds(query.tokens, query.sequences),
        queue=state.queue_seconds + step_below(state, shard.below),
        adapter=shard.adapter,
        own=steps * (state.step_seconds + state.cost.sequence) + compute,
        others=(busy / (1 - busy) + stream_weight * state.decoding) * compute,
        fetch=fetch,
        fetched=fetched,
        elsewhere=elsewhere,
    )


def step_below(state: ShardState, below: int) -> float:
    """What is left on average of a step of those below all others, as if it had one sequence.

    They have none beside anybody else. A longer one counts no more: else who comes would be sent to a shard that
    streams already, whose stream would feel it.
    """
    return 0.5 * state.cost.step if below and not state.num_sequences else 0.0


def packed(below: Mapping[str, int]) -> list[str]:
    """The shards among which one is chosen for a request below all others, by how many of them each has."""
    if room := [name for name, count in below.items() if count < PACKED]:
        return [min(room)]
    most = min(below.values()) + PACKED
    return [name for name, count in below.items() if count < most]


def prefix_affinity(query: Query, shards: Sequence[Candidate], stream_weight: float) -> Choice:
    """The shard with the lowest score."""
    scores = {shard.name: score(query, shard, shard.cached, stream_weight) for shard in shards}
    ranked = sorted(shards, key=lambda shard: scores[shard.name].total)
    best = ranked[0]
    longest = max(max(shard.cached, shard.peer_cached) for shard in shards)
    reason: Reason = "load" if not longest else "prefix" if best.cached == longest else "spread"
    if scores[best.name].fetched:
        reason = "fetch"
    return _choice(ranked, scores[best.name], "stale" if best.stale else reason)


def apart(query: Query, shards: Sequence[Candidate], stream_weight: float, apart_weight: float) -> Choice:
    """As `prefix_affinity`, but that a prompt may be computed on one shard and its stream run on another.

    Args:
        stream_weight: where the request runs on one shard; `apart_weight` counts where that is more.
    """
    weight = max(stream_weight, apart_weight)
    shards = [_grown(shard) for shard in shards]
    scores = {shard.name: score(query, shard, shard.cached, weight) for shard in shards}
    totals = {shard.name: scores[shard.name].total + apart_weight * _held(shard) for shard in shards}
    ranked = sorted(shards, key=lambda shard: totals[shard.name])
    whole = ranked[0]
    pairs = _pairs(query, shards, scores, weight, apart_weight)
    best = min(pairs, key=lambda pair: pair.total, default=None)
    if best is None or best.total >= totals[whole.name]:
        choice = prefix_affinity(query, [whole], weight)
        longest = max(max(shard.cached, shard.peer_cached) for shard in shards)
        reason: Reason = "spread" if choice.reason == "prefix" and whole.cached < longest else choice.reason
        return replace(choice, order=[shard.name for shard in ranked], reason=reason)
    order = [best.runs.name, *(shard.name for shard in ranked if shard is not best.runs)]
    there, block = best.runs.cached + best.own.fetched, best.runs.state.block_size
    first = _choice([best.computes], scores[best.computes.name], "apart")
    return Choice(order, "apart", there, best.own, best.computes.name, there // block, first)


class _Pair(NamedTuple):
    """A prompt on one shard and its stream on another; `own` is the second one's score."""

    total: float
    runs: Candidate
    computes: Candidate
    own: Score


def _pairs(
    query: Query, shards: Sequence[Candidate], scores: Mapping[str, Score], weight: float, apart_weight: float
) -> list[_Pair]:
    """For each shard where the stream may run, with the best other one for its prompt.

    Args:
        scores: of the whole request, by shard.
    """
    found = []
    sharing = [shard for shard in shards if not shard.stale and shard.state.fetched_block]
    computing = sorted(sharing, key=lambda shard: scores[shard.name].total)[:2]
    for runs in sharing if query.parts and len(sharing) > 1 else ():
        block = runs.state.block_size
        there = (query.tokens - 1) // block * block
        if there <= runs.cached:
            continue
        computes = computing[computing[0] is runs]
        fetched, elsewhere = there - runs.cached, scores[computes.name]
        seconds = _left_to_fetch(runs.state, fetched, computes.state.chunk, elsewhere)
        own = _score(query, runs, there, weight, seconds, fetched, elsewhere.first_token)
        total = own.total + elsewhere.others + apart_weight * _held(runs)
        found.append(_Pair(total, runs, computes, own))
    return found


def _grown(shard: Candidate) -> Candidate:
    """The same once its streams are half as long again as they will be: where they gather, what is free now is not."""
    state = shard.state
    more = int(state.num_sequences * state.mean_output / 2 / state.block_size)
    return replace(shard, state=replace(state, blocks_free=max(0, state.blocks_free - more))) if more else shard


def _left_to_fetch(state: ShardState, fetched: int, chunk: int, elsewhere: Score) -> float:
    """Seconds that blocks take to come once their prompt is computed: each chunk's come while the next is computed.

    Args:
        state: of the shard that fetches them.
        fetched: tokens in them.
        chunk: tokens of a step there.
        elsewhere: the prompt's score.
    """
    return max(state.fetch_seconds(min(chunk, fetched)), state.fetch_seconds(fetched) - elsewhere.own)


def _held(shard: Candidate) -> float:
    """Seconds for which prompts will hold up a stream that runs there."""
    busy = min(shard.busy, BUSIEST)
    return busy / (1 - busy) * shard.state.mean_output * shard.state.step_seconds


def least_loaded(query: Query, shards: Sequence[Candidate], stream_weight: float) -> Choice:
    """The shard that would be fastest if no shard held anything."""
    ranked = sorted(shards, key=lambda shard: _score(query, shard, 0, stream_weight).total)
    best = ranked[0]
    return _choice(ranked, score(query, best, best.cached, stream_weight), "stale" if best.stale else "load")


def round_robin(query: Query, shards: Sequence[Candidate], stream_weight: float) -> Choice:
    """Each in turn, in the order of their names."""
    ranked = sorted(shards, key=lambda shard: shard.name)
    start = query.turn % len(ranked)
    ranked = ranked[start:] + ranked[:start]
    return _choice(ranked, score(query, ranked[0], ranked[0].cached, stream_weight), "turn")


def session(query: Query, shards: Sequence[Candidate], stream_weight: float) -> Choice:
    """The same shard for the same session."""
    if not query.session:
        return least_loaded(query, shards, stream_weight)
    ranked = sorted(shards, key=lambda shard: _rendezvous(query.session, shard.name))
    return _choice(ranked, score(query, ranked[0], ranked[0].cached, stream_weight), "session")


Policy = Callable[[Query, Sequence[Candidate], float], Choice]
POLICIES: dict[PolicyName, Policy] = {
    "prefix_affinity": prefix_affinity,
    "least_loaded": least_loaded,
    "round_robin": round_robin,
    "session": session,
}


def explain(query: Query, shards: Sequence[Candidate], stream_weight: float, apart_weight: float = 0.0) -> str:
    """The formula with its numbers, a line per shard and per pair: enough to redo the decision by hand."""
    if apart_weight:
        stream_weight, shards = max(stream_weight, apart_weight), [_grown(shard) for shard in shards]
    lines, scores = [], {}
    for shard in shards:
        terms = scores[shard.name] = score(query, shard, shard.cached, stream_weight)
        held = apart_weight * _held(shard)
        lines.append(
            f"{shard.name}: {terms.total + held:.4f} s = {_terms(terms)} + held {held:.4f}; cached {shard.cached} of "
            f"{query.tokens}, fetched {terms.fetched}, busy {shard.busy:.3f}, stale {shard.stale}, "
            f"{asdict(shard.state)}"
        )
    pairs = _pairs(query, shards, scores, stream_weight, apart_weight) if apart_weight else []
    for total, runs, computes, own in pairs:
        lines.append(
            f"{computes.name} for {runs.name}: {total:.4f} s = elsewhere {own.elsewhere:.4f} + {_terms(own)}"
            f" + others there {scores[computes.name].others:.4f} + held {apart_weight * _held(runs):.4f}"
        )
    return "\n".join(lines)


def _terms(terms: Score) -> str:
    return (
        f"wait {terms.wait:.4f} + queue {terms.queue:.4f} + adapter {terms.adapter:.4f} + fetch {terms.fetch:.4f}"
        f" + own {terms.own:.4f} + others {terms.others:.4f}"
    )


def _choice(ranked: Sequence[Candidate], best: Score, reason: Reason) -> Choice:
    first, order = ranked[0], [shard.name for shard in ranked]
    peer = (first.peer, first.peer_cached // first.state.block_size) if best.fetched else ("", 0)
    return Choice(order, reason, first.cached + best.fetched, best, *peer)


def _rendezvous(key: str, shard: str) -> bytes:
    return blake2b(f"{key}\0{shard}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
