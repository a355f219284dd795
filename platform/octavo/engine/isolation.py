"""Who runs in the next step while somebody is suspected of breaking steps: one request's harm is one request's.

A step raises for all requests in it, and does not say which of them is to blame. So they are tried apart:

    all 32 raised  ->  try 16: they raise   ->  try 8 of these: they pass  ->  the other 8 hold it: try 4 of these ...

A trial is a step with its members only, and repeats what they were about to do. Members that raise are split in two;
where one half passes, the other is split without being tried as a whole. One poison among n takes at most 2 log2 n
trials, where each request alone would take n. Both halves are tried, so several poisons are found in one search. Those
that ran for the first time are tried first: poison in a prompt takes two trials, however many others run.

Who raises in a step of its own is guilty, if it has never run without raising. Others are tried once more first. When
nobody is guilty, the fault needs many requests at once, or comes and goes, and all go on. From then on a step has at
most half as many requests as the one that raised, and they take turns (`crowd`). So a fault of size is avoided, and one
that comes and goes is followed into smaller and smaller steps, until one request is alone. If that raises UNEXPLAINED
times it is guilty; if several requests raise so, the fault is the machine's, and the engine stops. After CALM_STEPS
without such a search all run together again.

A request may also come as a suspect (`Request.alone`), because its last shard died. It has a trial of its own before it
joins the others. Between two such trials there is a step for everybody else: with many suspects the others run at half
their speed, and do not stop.

Pure bookkeeping over request ids. The engine runs the steps and says what came of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

UNEXPLAINED = 3
"""Searches that may find nobody after a step with a single request in it."""

CALM_STEPS = 1000
"""Steps after which searches that found nobody are forgotten."""


@dataclass(slots=True)
class _Trial:
    """Requests that run by themselves.

    Attributes:
        members: of these, those that have not passed.
        rest: others that raised together with the members. If the members pass, it is one of these.
    """

    members: list[str]
    rest: list[str] = field(default_factory=list)


class Isolation:
    """Trials, the next one last, and suspects that wait for theirs.

    Attributes:
        active: whether the next step is anything but one for everybody.
        trying: whether a trial is under way or waits for its turn.
        searching: whether a step has raised and whom to blame is not decided yet.
        crowd: most requests in a step; None: no limit.
    """

    def __init__(self) -> None:
        self.active = self.trying = self.searching = False
        self.crowd: int | None = None
        self._turn: set[str] = set()  # who runs in the next step, where there is a limit
        self._next = 0  # place among those that run of the first who has not had a turn
        self._first: list[str] = []  # who was in the step that began the search
        self._again: list[str] = []  # who is guilty if it raises alone once more
        self._trials: list[_Trial] = []
        self._suspects: dict[str, None] = {}  # in order of arrival
        self._guilty: list[str] = []
        self._left = False  # whether somebody left in the middle of a search
        self._everybody_ran = True  # since the last trial of a suspect
        self._unexplained: list[str] = []  # who was alone in a step that raised, where the search found nobody
        self._last = 0  # step of the last search that found nobody

    def suspect(self, request_id: str) -> None:
        """A request is to run alone before it joins the others."""
        self._suspects[request_id] = None
        self.active = self.trying = True

    def raised(self, request_ids: Sequence[str], newcomers: Collection[str] = ()) -> None:
        """A step of these requests, at least one, raised.

        Args:
            newcomers: those that ran for the first time.
        """
        self.active = self.trying = True
        if not self.searching:
            self.searching, self._first, self._again = True, list(request_ids), list(newcomers)
        if not self._trials:
            first = [request_id for request_id in request_ids if request_id in newcomers]
            if 0 < len(first) < len(request_ids):
                self._trials.append(_Trial(first, [other for other in request_ids if other not in newcomers]))
            else:
                self._split(list(request_ids))
            return
        trial = self._trials.pop()
        self._try(trial.rest)
        self._try([member for member in trial.members if member not in request_ids])
        if len(request_ids) == 1 and (request_ids[0] in self._again or self._first == request_ids):
            self._guilty += request_ids
            self._next_trial(blame_rest=False)
        elif len(request_ids) == 1:
            self._again += request_ids
            self._try(request_ids)
        else:
            self._split(list(request_ids))

    def passed(self, request_id: str) -> None:
        """A member of the trial has done what it was to do, and nothing raised."""
        self._drop_member(request_id, blame_rest=True)

    def left(self, request_id: str) -> None:
        """A request was aborted."""
        if not self.active:
            return
        self._left |= self.searching
        self._suspects.pop(request_id, None)
        for trial in self._trials:
            trial.rest = [other for other in trial.rest if other != request_id]
        self._guilty = [other for other in self._guilty if other != request_id]
        self._drop_member(request_id, blame_rest=False)

    def begin(self) -> str | None:
        """Begin the trial of the next suspect if it is time for that; returns it."""
        if self._trials or self.searching or not self._suspects or not self._everybody_ran:
            return None
        request_id = next(iter(self._suspects))
        del self._suspects[request_id]
        self._everybody_ran = False
        self._trials.append(_Trial([request_id]))
        return request_id

    def take_turns(self, running: Sequence[str]) -> None:
        """Choose who may be in the next step, where not all may; those that run are named in a lasting order."""
        if self.crowd is not None:
            first = self._next if self._next < len(running) else 0
            self._next = first + self.crowd
            self._turn = set(running[first : self._next])

    def everybody_ran(self, step: int) -> None:
        """A step had everybody in it but the suspects and those whose turn it was not."""
        self._everybody_ran = True
        if step - self._last > CALM_STEPS:
            self.crowd = None
        self._settle()

    @property
    def members(self) -> list[str]:
        """Who runs now; empty when there is no trial."""
        return self._trials[-1].members if self._trials else []

    def may_run(self, request_id: str) -> bool:
        """Whether a request may be in the next step."""
        if self._trials:
            return request_id in self._trials[-1].members
        if request_id in self._suspects:
            return False
        if self.crowd is not None and request_id not in self._turn:
            if len(self._turn) >= self.crowd:
                return False
            self._turn.add(request_id)  # one that waits takes a place that is left
        return True

    def conclude(self, step: int) -> list[str]:
        """End a search that has no more trials; returns the guilty.

        Args:
            step: number of steps so far.

        Raises:
            Unexplained: steps of single requests raise, now and then and whoever it is.
        """
        guilty, left = self._guilty, self._left
        self._guilty, self._left, self.searching = [], False, False
        if guilty or step - self._last > CALM_STEPS:
            self._unexplained = []
        if not guilty and not left:
            guilty = self._nobody_found(step)
        self.crowd = None if guilty else self.crowd
        self._settle()
        return guilty

    def _nobody_found(self, step: int) -> list[str]:
        """Let fewer run together from now on; returns whom to blame where a step had only one."""
        self._last = step
        if len(self._first) > 1:
            self.crowd = len(self._first) // 2
            return []
        self._unexplained += self._first
        if len(self._unexplained) < UNEXPLAINED:
            return []
        if len(set(self._unexplained)) > 1:
            raise Unexplained(f"steps of single requests raise now and then: {self._unexplained}")
        return self._first

    def _split(self, suspects: list[str]) -> None:
        """Try those of whom at least one raises."""
        half = len(suspects) // 2
        self._trials.append(_Trial(suspects[:half], suspects[half:]) if half else _Trial(suspects))

    def _try(self, members: Iterable[str]) -> None:
        if members := list(members):
            self._trials.append(_Trial(members))

    def _drop_member(self, request_id: str, *, blame_rest: bool) -> None:
        for trial in self._trials:
            if request_id in trial.members:
                trial.members.remove(request_id)
        self._next_trial(blame_rest=blame_rest)

    def _next_trial(self, *, blame_rest: bool) -> None:
        """Drop trials that have no members any more."""
        while self._trials and not self._trials[-1].members:
            rest = self._trials.pop().rest
            if blame_rest and rest:
                self._split(rest)
            else:
                self._try(rest)
        self._settle()

    def _settle(self) -> None:
        self.trying = bool(self._trials or self._suspects or self.searching)
        self.active = self.trying or self.crowd is not None


class Unexplained(Exception):
    """Steps raise, whoever is in them."""
