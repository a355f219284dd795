"""Who runs in the next step while somebody is suspected of breaking steps: one request's harm is one request's.

A step raises for all requests in it, and does not say which of them is to blame. So they are tried apart:

    all 32 raised  ->  try 16: they raise   ->  try 8 of these: they pass  ->  the other 8 hold it: try 4 of these ...

A trial is a step with its members only, and repeats what they were about to do. Members that raise are split in two;
where one half passes, the other is split without being tried as a whole. One poison among n takes at most 2 log2 n
trials, where each request alone would take n. Nobody is found guilty who did not raise in a step of its own. Both
halves are tried, so several poisons are found in one search. When nobody raises alone, the fault was the machine's or
passed by itself, and all go on; an engine that sees this UNEXPLAINED times has a fault that no request explains.

A request may also come as a suspect (`Request.alone`), because its last shard died. It has a trial of its own before it
joins the others. Between two such trials there is a step for everybody else: with many suspects the others run at half
their speed, and do not stop.

Pure bookkeeping over request ids. The engine runs the steps and says what came of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

UNEXPLAINED = 3
"""Searches in a row that may end without a guilty request."""

CALM_STEPS = 1000
"""Steps after which a search that found nobody is forgotten."""


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
        searching: whether a step has raised and whom to blame is not decided yet.
    """

    def __init__(self) -> None:
        self.active = self.searching = False
        self._trials: list[_Trial] = []
        self._suspects: dict[str, None] = {}  # in order of arrival
        self._guilty: list[str] = []
        self._left = False  # whether somebody left in the middle of a search
        self._everybody_ran = True  # since the last trial of a suspect
        self._unexplained = 0
        self._last = 0  # step of the last search that found nobody

    def suspect(self, request_id: str) -> None:
        """A request is to run alone before it joins the others."""
        self._suspects[request_id] = None
        self.active = True

    def raised(self, request_ids: Sequence[str]) -> None:
        """A step of these requests, at least one, raised."""
        self.active = self.searching = True
        if not self._trials:
            self._split(list(request_ids))
            return
        trial = self._trials.pop()
        self._try(trial.rest)
        self._try([member for member in trial.members if member not in request_ids])
        if len(request_ids) == 1:
            self._guilty += request_ids
            self._next_trial(blame_rest=False)
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

    def everybody_ran(self) -> None:
        """A step had everybody but the suspects in it."""
        self._everybody_ran = True
        self._settle()

    @property
    def members(self) -> list[str]:
        """Who runs now; empty when there is no trial."""
        return self._trials[-1].members if self._trials else []

    def may_run(self, request_id: str) -> bool:
        """Whether a request may be in the next step."""
        return request_id in self._trials[-1].members if self._trials else request_id not in self._suspects

    def conclude(self, step: int) -> list[str]:
        """End a search that has no more trials; returns the guilty.

        Args:
            step: number of steps so far.

        Raises:
            Unexplained: nobody was found, once too often.
        """
        guilty, left = self._guilty, self._left
        self._guilty, self._left, self.searching = [], False, False
        self._settle()
        if guilty or step - self._last > CALM_STEPS:
            self._unexplained = 0
        if not guilty and not left:
            self._last = step
            self._unexplained += 1
            if self._unexplained >= UNEXPLAINED:
                raise Unexplained(f"steps raise, and in {self._unexplained} searches no request raised alone")
        return guilty

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
        self.active = bool(self._trials or self._suspects or self.searching)


class Unexplained(Exception):
    """Steps raise, whoever is in them."""
