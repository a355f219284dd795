"""Which shard gets a request: the one whose first token is predicted to come first, all costs in seconds.

    score = wait * step + steps * (step + c) + b * tokens + d * attended + (next + stream_weight * running) * own
    step  = a + (b + c) * running + (d + e) * context
    next  = busy / (1 - busy)

a, b, c, d, e are the shard's own cost model (seconds per step, token, sequence, attended and context position, fitted
to its measured steps, so a slow shard says so itself). `step` is what every step costs because of the streams that
run there, `tokens` what is to be computed before the first token of this request: what waits there, and the request's
own part that is not cached. These take `steps` steps of `chunk` tokens, and half a step to begin with where streams
run, and attend to `attended` positions. `wait` steps pass until running streams have left enough places and KV
blocks. `own` are the seconds of the request's own tokens: what its prompt costs each stream that runs there, and those
who come next. These wait `next` seconds together for each second of work (M/G/1) where prompts are worked on for `busy`
of the time: nothing where there is room, so a prefix that is asked for all at once spreads at once.

A hot prefix spreads by itself: when the shard that holds it has more to do than computing the prefix anew costs
elsewhere, another shard's score is lower, and that shard holds it from then on.

    prefix_affinity  lowest score
    least_loaded     lowest score of a shard that holds nothing of the prompt
    round_robin      each in turn
    session          the same shard for the same session, by rendezvous hashing (Thaler, Ravishankar 1998): a shard that
                     joins or leaves moves only its own share of the sessions. Without a session: least_loaded

Each is a pure function of what is wanted and of a snapshot of the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Literal

from octavo.cost_model import Cost

Reason = Literal["prefix", "load", "spread", "stale", "turn", "session"]
PolicyName = Literal["prefix_affinity", "least_loaded", "round_robin", "session"]

PRIOR = Cost(step=5e-3, token=5e-5, sequence=1e-4, attended=1e-9, context=1e-8)
"""Cost model of a fleet in which no shard has measured a step: only proportions matter, and only to the first few."""

BUSIEST = 0.8
"""Of `busy`: more than 4 seconds of waiting for a second of work is what no steady state has."""


@dataclass(frozen=True, slots=True)
class Load:
    """A shard's work as it says itself, many times a second.

    Attributes:
        running: sequences that get a token in every step.
        context: positions these attend to in a step, together.
        waiting: all other sequences: prompts in progress, and those that wait for a place or blocks.
        prefill: tokens known but not computed of these.
        attended: positions that computing these attends to.
        chunk: tokens per step that prompts may share now.
        places: sequences that fit one step.
        blocks, blocks_free: KV blocks, and those not held by a sequence.
        block_size: tokens per block.
        output: mean tokens of an answer so far.
        cost: its cost model; zeros while nothing was measured.
    """

    running: int
    context: int
    waiting: int
    prefill: int
    attended: int
    chunk: int
    places: int
    blocks: int
    blocks_free: int
    block_size: int
    output: float
    cost: Cost


@dataclass(frozen=True, slots=True)
class Wanted:
    """What routing must know of a request.

    Attributes:
        tokens: of the prompt.
        width: sequences it becomes.
        session: what keeps requests together, or "".
        turn: counts the router's requests.
        busy: share of the time for which shards have had prompts to work on lately.
    """

    tokens: int
    width: int = 1
    session: str = ""
    turn: int = 0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shard as the router sees it now.

    Attributes:
        cached: leading tokens of the prompt that it holds or is about to compute.
        load: its last report, and what was sent there since.
        stale: whether its reports stopped, so that `cached` is 0 and `load` is what this router sent there itself.
    """

    name: str
    cached: int
    load: Load
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """The formula's terms in seconds; `total` is what shards are compared by, `first_token` the prediction."""

    wait: float
    queue: float
    own: float
    others: float

    @property
    def first_token(self) -> float:
        return self.wait + self.queue + self.own

    @property
    def total(self) -> float:
        return self.first_token + self.others


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes and why.

    Attributes:
        order: every shard, best first; a full shard is passed over for the next.
        reason: "prefix": it holds the longest prefix; "spread": another holds a longer one but would take longer;
            "load": nobody holds any, or the policy did not ask; "stale": the same for a shard that is not heard;
            "turn" and "session": as the policy says.
        cached: prompt tokens predicted to be found in its cache.
        score: of the first shard.
    """

    order: list[str]
    reason: Reason
    cached: int
    score: Score


def score(wanted: Wanted, shard: Candidate, cached: int, stream_weight: float) -> Score:
    """The formula above, for a shard that finds `cached` tokens of the prompt."""
    load = shard.load
    a, b, c, d, e = load.cost
    uncached = wanted.tokens - cached
    own_attended = uncached * (cached + (uncached + 1) // 2)
    step = a + (b + c) * load.running + (d + e) * load.context
    queue_steps = load.prefill / max(load.chunk, 1) + (0.5 if load.running else 0.0)
    own_steps = max(1.0, uncached / max(load.chunk, 1))
    own = b * uncached + d * own_attended
    busy = min(wanted.busy, BUSIEST)
    return Score(
        wait=_places(wanted, load) * step,
        queue=queue_steps * (step + c) + b * load.prefill + d * load.attended,
        own=own_steps * (step + c) + own,
        others=(busy / (1 - busy) + stream_weight * load.running) * own,
    )


def _places(wanted: Wanted, load: Load) -> float:
    """Steps until running streams have left what the waiting ones and this one need: each ends after `output` steps."""
    if not load.running:
        return 0.0
    places = load.running + load.waiting + wanted.width - load.places
    blocks = (load.prefill + wanted.tokens) / load.block_size - load.blocks_free
    held = max(1.0, (load.blocks - load.blocks_free) / load.running)
    return max(0.0, places, blocks / held) * load.output / load.running


def prefix_affinity(wanted: Wanted, shards: Sequence[Candidate], stream_weight: float) -> Choice:
    """The shard with the lowest score."""
    scores = {shard.name: score(wanted, shard, shard.cached, stream_weight) for shard in shards}
    ranked = sorted(shards, key=lambda shard: scores[shard.name].total)
    best = ranked[0]
    longest = max(shard.cached for shard in shards)
    reason: Reason = "load" if not longest else "prefix" if best.cached == longest else "spread"
    return _choice(ranked, scores[best.name], "stale" if best.stale else reason)


def least_loaded(wanted: Wanted, shards: Sequence[Candidate], stream_weight: float) -> Choice:
    """The shard that would be fastest if no shard held anything."""
    ranked = sorted(shards, key=lambda shard: score(wanted, shard, 0, stream_weight).total)
    best = ranked[0]
    return _choice(ranked, score(wanted, best, best.cached, stream_weight), "stale" if best.stale else "load")


def round_robin(wanted: Wanted, shards: Sequence[Candidate], stream_weight: float) -> Choice:
    """Each in turn, in the order of their names."""
    ranked = sorted(shards, key=lambda shard: shard.name)
    start = wanted.turn % len(ranked)
    ranked = ranked[start:] + ranked[:start]
    return _choice(ranked, score(wanted, ranked[0], ranked[0].cached, stream_weight), "turn")


def session(wanted: Wanted, shards: Sequence[Candidate], stream_weight: float) -> Choice:
    """The same shard for the same session."""
    if not wanted.session:
        return least_loaded(wanted, shards, stream_weight)
    ranked = sorted(shards, key=lambda shard: _rendezvous(wanted.session, shard.name))
    return _choice(ranked, score(wanted, ranked[0], ranked[0].cached, stream_weight), "session")


Policy = Callable[[Wanted, Sequence[Candidate], float], Choice]
POLICIES: dict[PolicyName, Policy] = {
    "prefix_affinity": prefix_affinity,
    "least_loaded": least_loaded,
    "round_robin": round_robin,
    "session": session,
}


def explain(wanted: Wanted, shards: Sequence[Candidate], stream_weight: float) -> str:
    """The formula with its numbers, a line per shard: enough to redo the decision by hand."""
    lines = []
    for shard in shards:
        terms = score(wanted, shard, shard.cached, stream_weight)
        lines.append(
            f"{shard.name}: {terms.total:.4f} s = wait {terms.wait:.4f} + queue {terms.queue:.4f} + own {terms.own:.4f}"
            f" + others {terms.others:.4f}; cached {shard.cached} of {wanted.tokens}, stale {shard.stale}, "
            f"{asdict(shard.load)}"
        )
    return "\n".join(lines)


def _choice(ranked: Sequence[Candidate], best: Score, reason: Reason) -> Choice:
    return Choice([shard.name for shard in ranked], reason, ranked[0].cached, best)


def _rendezvous(key: str, shard: str) -> bytes:
    return blake2b(f"{key}\0{shard}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
