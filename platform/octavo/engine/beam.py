"""Beam search: the likeliest texts of a request, in place of sampled ones.

    b beams, each with the sum        their likeliest next tokens        the best K of all:
    of its log probabilities    ──>   (`step.Candidates`)         ──>    those that end are kept, b others go on

The rules are those of `_beam_search` in transformers' `generation/utils.py` (5.23), for one prompt:

- K is b, times 2, or times 1 + the number of end tokens: however many end, b are left to go on.
- Of those that end only such as are among the best b count. The b best of these, by score, are kept.
- It is over when nothing can go on, or b are kept and, as `early_stopping` says, none that runs would score higher.
- Sums and scores are float32, because texts that are nearly equal are told apart in the same way then.

A beam is a sequence of the request. One that goes on in several ways is forked; those share its blocks. All beams have
the same length and are in the same steps. None is in a step before it is known what follows, so nothing is guessed.

Nothing is told before the end. So a search that loses its blocks, its step or its shard begins again with the prompt,
and ends alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from octavo.config import EngineConfig
from octavo.engine.admission import ModelLimits, most_tokens
from octavo.engine.beam_stops import WINDOW, StopTexts
from octavo.errors import BadRequest
from octavo.kvcache.block_pool import BlockPool
from octavo.request import FinishReason, Request, SequenceUpdate, TokenLogprobs, token_logprobs
from octavo.step import Candidates, LogprobRow, StepResult

if TYPE_CHECKING:
    from octavo.engine.constrained import Constraint
    from octavo.engine.sequence import Sequence
    from octavo.text.tokenizer import Tokenizer


PART_TOKENS, PART_VALUES = 2**14, 2**12
"""Tokens of an update, and log probabilities where it has any: a text is told at once, and may be of any length."""


MAX_TOLD = 2**14
"""Log probabilities that a beam holds until the end, at most: 2.5 MB."""


class End(NamedTuple):
    """Why a text ends."""

    reason: FinishReason
    stop_reason: int | str | None = None


class _Told(NamedTuple):
    """The log probabilities of a text's tokens, the newest first: texts that begin alike share them."""

    before: _Told | None
    entry: TokenLogprobs


@dataclass(slots=True)
class _Next:
    """A beam with a token more.

    Attributes:
        row: of the beam in the step.
        place: of the token among the beam's candidates.
        constraint: of the beam, with the token; None where it has none.
        text_end: see `StopTexts`; "" without stop strings.
    """

    beam: Sequence
    row: int
    place: int
    token: int
    total: np.float32
    constraint: Constraint | None = None
    text_end: str = ""


@dataclass(slots=True)
class _Text:
    """A complete text."""

    score: np.float32
    total: np.float32
    token_ids: list[int]
    told: _Told | None
    end: End


@dataclass(slots=True)
class NextBeams:
    """What a step makes of the beams.

    Attributes:
        new, gone: beams that came, whose blocks are forked, and that go no further, whose blocks are still theirs.
        ways: in how many ways a beam goes on, of those that do; all but the first are `new`, in this order.
        updates: the answers, or why there are none; None while the search goes on.
    """

    ways: dict[Sequence, int] = field(default_factory=dict)
    new: list[Sequence] = field(default_factory=list)
    gone: list[Sequence] = field(default_factory=list)
    updates: list[SequenceUpdate] | None = None


class Beams:
    """A request's search.

    Args:
        ends: its end tokens and stop tokens.
        tokenizer: for stop strings.

    Attributes:
        width: most beams.
        num_candidates: tokens that may follow a beam and are looked at.
        blocks: that it needs at least, as far as earlier attempts have shown.

    Raises:
        BadRequest: stop strings need a tokenizer.
    """

    def __init__(self, request: Request, ends: frozenset[int], tokenizer: Tokenizer | None = None) -> None:
        params = request.params
        assert params.beams is not None
        self._request, self._search = request, params.beams
        self.width = params.beams.width
        self._most = max(2, 1 + len(ends)) * self.width
        self.num_candidates = min(self._most, 2 * self.width + len(ends))
        self.blocks = 0
        self._stops = StopTexts.of(params, tokenizer, request.prompt_token_ids)
        self.restart()

    def restart(self) -> None:
        """Forget all of it but how many blocks it needs."""
        self._complete: list[_Text] = []
        self._told: dict[Sequence, _Told] = {}
        self._text_ends: dict[Sequence, str] = {}

    def step(self, rows: list[tuple[int, Sequence]], result: StepResult, error: str) -> NextBeams:
        """Go on with what a step says of all beams.

        Args:
            rows: (row, beam).
            error: why a beam has no candidates whose logits are not finite.
        """
        if any(result.token_ids[row] < 0 for row, _ in rows):
            return NextBeams(updates=self.failed("error", error))
        going = self._choose(self._best(rows, result), result)
        if self._is_over(going, rows[0][1]):
            return NextBeams(updates=self._answers(rows))
        return self._go_on(going, [beam for _, beam in rows], result)

    def failed(self, reason: FinishReason, sentence: str | None = None) -> list[SequenceUpdate]:
        """The updates that end it without an answer."""
        name = self._request.request_id
        return [
            SequenceUpdate(name, index, [], finish_reason=reason, stop_reason=sentence) for index in self._indices()
        ]

    # ---- one step ---------------------------------------------------------------------------------------------

    def _best(self, rows: list[tuple[int, Sequence]], result: StepResult) -> Iterator[_Next]:
        """The beams' next tokens, the best first."""
        found = [(row, beam, result.candidates[row]) for row, beam in rows if _may_go_on(beam)]
        if not found:
            return
        totals = np.concatenate([np.float32(beam.cumulative_logprob) + each.scores for _, beam, each in found])
        begins = np.cumsum([0, *(len(each.scores) for _, _, each in found)])
        for index in np.argsort(-totals, kind="stable")[: self._most].tolist():
            which = int(np.searchsorted(begins, index, "right")) - 1
            (row, beam, each), place = found[which], index - int(begins[which])
            yield _Next(beam, row, place, int(each.token_ids[place]), totals[index])

    def _choose(self, best: Iterable[_Next], result: StepResult) -> list[_Next]:
        """Keep those that end here, as far as they count; returns those that go on."""
        going: list[_Next] = []
        ended: list[_Text] = []
        for rank, each in enumerate(best):
            if rank >= self.width == len(going):
                break
            end = self._end(each)
            if end is None and len(going) < self.width:
                going.append(each)
            elif end is not None and end.reason != "refused" and rank < self.width:
                ended.append(self._text(each, end, result))
        self._complete = sorted([*self._complete, *ended], key=lambda text: -text.score)[: self.width]
        return going

    def _end(self, each: _Next) -> End | None:
        """Why the text ends with this token; "refused" where its constraint does not take it."""
        beam, token = each.beam, each.token
        group, params = beam.group, self._request.params
        count = beam.num_output + 1
        if count >= params.min_tokens:
            if token in group.end_token_ids:
                return End("stop")
            if token in group.stop_token_ids:
                return End("stop", token)
        if beam.constraint is not None:
            each.constraint = beam.constraint.copy()
            each.constraint.push([token])
            if each.constraint.error is not None:
                return End("refused")
            if each.constraint.complete:
                return End("stop")
        if self._stops is not None:
            last = [*beam.token_ids[beam.num_prompt :][-WINDOW:], token]
            each.text_end, stop = self._stops.push(self._text_ends.get(beam, ""), last, count)
            if stop is not None:
                return End("stop", stop)
        return End("length") if count >= group.max_tokens else None

    def _text(self, each: _Next, end: End, result: StepResult) -> _Text:
        beam = each.beam
        output = [*beam.token_ids[beam.num_prompt :], each.token]
        score = each.total / np.float32(len(output) ** self._search.length_penalty)
        return _Text(score, each.total, output, self._telling(each, result), end)

    def _is_over(self, going: list[_Next], beam: Sequence) -> bool:
        """Whether nothing goes on, or nothing that does would be better than what is complete."""
        search = self._search
        if not going:
            return True
        if len(self._complete) < self.width:
            return False
        if search.early_stopping is True:
            return True
        longest = search.early_stopping == "never" and search.length_penalty > 0
        length = beam.group.max_tokens if longest else beam.num_output + 1
        return bool(going[0].total / np.float32(length**search.length_penalty) <= self._complete[-1].score)

    def _go_on(self, going: list[_Next], beams: list[Sequence], result: StepResult) -> NextBeams:
        """Give the beams their tokens: the first way on is the beam itself, each other one a fork of it."""
        ways: dict[Sequence, list[_Next]] = {}
        for each in going:
            ways.setdefault(each.beam, []).append(each)
        turn = NextBeams({beam: len(nexts) for beam, nexts in ways.items()})
        turn.gone = [beam for beam in beams if beam not in ways]
        slots = self.free_slots(ways)
        told: dict[Sequence, _Told] = {}
        text_ends: dict[Sequence, str] = {}
        for beam, nexts in ways.items():
            beam.constraint = None  # each way has its own
            forks = [fork_of(beam, next(slots)) for _ in nexts[1:]]
            for seq, each in zip([beam, *forks], nexts, strict=True):
                text_ends[seq] = each.text_end
                if (telling := self._telling(each, result)) is not None:
                    told[seq] = telling
            for seq, each in zip([beam, *forks], nexts, strict=True):
                _advance(seq, each)
            turn.new += forks
        self._told, self._text_ends = told, text_ends
        return turn

    def free_slots(self, beams: Iterable[Sequence]) -> Iterator[int]:
        """Places in the order of a search's beams that none of these has."""
        used = {beam.order[3] for beam in beams}
        return (slot for slot in range(self.width) if slot not in used)

    # ---- what is told -----------------------------------------------------------------------------------------

    def _telling(self, each: _Next, result: StepResult) -> _Told | None:
        """The log probabilities of a beam's tokens and the next one, if they are asked for."""
        row = result.logprobs.get(each.row)
        if row is None:
            return None
        return _Told(self._told.get(each.beam), _entry(row, result.candidates[each.row], each.place))

    def _answers(self, rows: list[tuple[int, Sequence]]) -> list[SequenceUpdate]:
        """The best texts, or why there are not as many as are asked for."""
        params = self._request.params
        if len(self._complete) < params.n:
            errors = (beam.constraint.error for _, beam in rows if beam.constraint is not None)
            few = f"the request's rules leave {len(self._complete)} different answers, and n is {params.n}: lower n"
            return self.failed("refused", next(filter(None, errors), few))
        told = {index: self._told_before(index) for index in self._indices()}
        if any(self._complete[index].token_ids[: len(before)] != before for index, before in told.items()):
            return self.failed("error", "the search found another text here than where it began: send it again")
        return [part for index, before in told.items() for part in self._parts(index, len(before))]

    def _told_before(self, index: int) -> list[int]:
        """Tokens of an answer that an earlier shard has told."""
        emitted = self._request.emitted
        return [] if emitted is None else emitted[index] or []

    def _parts(self, index: int, first: int) -> list[SequenceUpdate]:
        """What tells an answer from a token on; the last part has its sum."""
        text = self._complete[index]
        entries = _entries(text.told)
        size = PART_TOKENS if not entries else max(1, PART_VALUES // len(entries[0]))
        starts = range(first, len(text.token_ids), size) or [first]
        parts = [
            SequenceUpdate(
                self._request.request_id, index, text.token_ids[at : at + size], entries[at : at + size] or None
            )
            for at in starts
        ]
        parts[-1].cumulative_logprob = float(text.total)
        parts[-1].finish_reason, parts[-1].stop_reason = text.end.reason, text.end.stop_reason
        return parts

    def _indices(self) -> list[int]:
        """Of the answers that nobody has got yet: an earlier shard may have told some."""
        emitted = self._request.emitted
        return [index for index in range(self._request.params.n) if emitted is None or emitted[index] is not None]


def check_beams(request: Request, limits: ModelLimits, config: EngineConfig) -> None:
    """Raise BadRequest if there are more beams than places, or they would hold too much."""
    params = request.params
    if params.beams is None:
        return
    each = 0 if params.num_logprobs is None else 1 + params.num_logprobs
    if (held := each * most_tokens(request, limits)) > MAX_TOLD:
        raise BadRequest(
            f"each beam would hold up to {held} log probabilities until the search ends, and at most {MAX_TOLD} are "
            "taken: lower max_tokens, or ask for fewer of them",
            "logprobs",
        )
    if params.beams.width > config.max_num_seqs:
        raise BadRequest(
            f"beam_width is {params.beams.width}, and this engine runs {config.max_num_seqs} sequences at once: "
            "lower it, or raise max_num_seqs",
            "beam_width",
        )


def blocks_wanted(beams: list[Sequence]) -> int:
    """Blocks that beams hold, and those that one token more takes."""
    held = {block for beam in beams for block in beam.table.held()}
    return len(held) + sum(beam.table.takes(beam.num_computed) for beam in beams)


def too_wide(beams: Beams, pool: BlockPool) -> str:
    """Says that there will never be enough blocks."""
    return (
        f"the beams of this request need {beams.blocks} KV blocks of {pool.block_size} tokens, and there are "
        f"{pool.num_blocks}: lower beam_width or max_tokens, or raise kv_cache_bytes"
    )


def _may_go_on(beam: Sequence) -> bool:
    constraint = beam.constraint
    return constraint is None or (constraint.error is None and not constraint.complete)


def fork_of(beam: Sequence, slot: int) -> Sequence:
    """A beam that shares everything computed so far; which of the answers it becomes shows at the end."""
    seq = beam.fork(slot)
    seq.index = 0
    return seq


def _advance(beam: Sequence, each: _Next) -> None:
    beam.token_ids.append(each.token)
    beam.cumulative_logprob = float(each.total)
    beam.constraint, beam.is_verifying = each.constraint, False
    if beam.counts is not None:
        beam.counts.add(each.token)


def _entries(told: _Told | None) -> list[TokenLogprobs]:
    entries = []
    while told is not None:
        entries.append(told.entry)
        told = told.before
    return entries[::-1]


def _entry(row: LogprobRow, candidates: Candidates, place: int) -> TokenLogprobs:
    """A candidate's log probabilities, with the alternatives and named tokens of its row."""
    ids = [int(candidates.token_ids[place]), *row.token_ids[1:]]
    values = [float(candidates.logprobs[place]), *row.logprobs[1:]]
    return token_logprobs(ids, values, int(candidates.ranks[place]), row.named)
