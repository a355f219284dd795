"""People beside lines of batches on eight simulated H100s: what scheduling and routing cost them, without any machine.

    python tests/deployments/octavo_serve/proofs/batches_simulated.py        a minute of a core

Real schedulers, pools and a router over the profile of an 8B model (`rehearsal/fleet.py`), 40 s of simulated time.
Five people a second stream 32 tokens after a prompt of 230, alone, beside 50 lines a second of the same size, and
beside as many lines as there is room for. Told are milliseconds to first tokens and between two tokens, and lines per
second. Bars for 50 lines a second: 1.1 times the first token's and 1.05 times the gap's 99th percentile; for all:
1.05 times the gap's, 90 % of what people leave of the capacity. The last line is JSON; exit code 1 if a bar was
missed.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from functools import partial

import numpy as np

from octavo.config import EngineConfig
from octavo.engine.plan import StepPlan
from octavo.rehearsal.fleet import Fleet, SimulatedShard
from octavo.rehearsal.simulated import load_profile
from octavo.request import BELOW_ALL, Request, SamplingParams, SequenceUpdate
from octavo.routing.router import RoutingConfig

SHARDS, SECONDS, PEOPLE, TOKENS = 8, 40.0, 5.0, 32
PROFILE = "llama-8b-h100"


class Beside(Fleet):
    """A run.

    Args:
        people: of a second.
        lines: of a second, or so many at any time.
    """

    def __init__(self, people: float, lines: float = 0.0, *, always: int = 0) -> None:
        config = EngineConfig(rehearsal=PROFILE, max_num_seqs=64, max_num_batched_tokens=2048, target_itl=0.05)
        super().__init__(load_profile(PROFILE), SHARDS, config, RoutingConfig())
        self.first: list[float] = []
        self.gaps: list[float] = []
        self.lines = self.steps = 0
        self.busy = 0.0
        self._last: dict[str, float] = {}
        self._names, self._chance, self._again = map(str, itertools.count()), random.Random(1), bool(always)
        chance, at = random.Random(2), 0.0
        while people and (at := at + chance.expovariate(people)) < SECONDS:
            self.at(at, partial(self._ask, 0))
        for number in range(int(lines * SECONDS)):
            self.at(number / lines, partial(self._ask, BELOW_ALL))
        for _ in range(always):
            self.at(0.0, partial(self._ask, BELOW_ALL))
        self.run(until=SECONDS)

    def _ask(self, priority: int) -> None:
        prompt = [self._chance.randrange(1000) for _ in range(230)]
        params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
        self.send(Request(request_id=next(self._names), prompt_token_ids=prompt, params=params, priority=priority))

    def _commit(self, shard: SimulatedShard, plan: StepPlan, seconds: float) -> None:
        self.busy, self.steps = self.busy + seconds, self.steps + 1
        super()._commit(shard, plan, seconds)

    def _took(self, update: SequenceUpdate, *, ended: bool) -> None:
        super()._took(update, ended=ended)
        trip = self.trips[update.request_id]
        if trip.request.priority == BELOW_ALL:
            self.lines += ended
            if ended and self._again:
                self._ask(BELOW_ALL)
            return
        before = self._last.get(update.request_id)
        (self.first if before is None else self.gaps).append(self.now - (trip.sent if before is None else before))
        self._last[update.request_id] = self.now

    def told(self) -> dict[str, float]:
        found = {"lines_per_second": round(self.lines / SECONDS, 1), "steps": self.steps}
        for name, values in {"first": self.first, "gap": self.gaps}.items():
            for share in (50, 99) if values else ():
                found[f"{name}_p{share}_ms"] = round(1000 * float(np.percentile(values, share)), 2)
        return found


def main() -> None:
    runs = {"alone": Beside(PEOPLE), "fifty": Beside(PEOPLE, 50.0), "all": Beside(PEOPLE, always=400)}
    capacity = Beside(0, always=400)
    found = {name: run.told() for name, run in runs.items()}
    for name, told in found.items():
        print(name, told, flush=True)
    alone, fifty, full = found.values()
    idle = 1 - runs["alone"].busy / SECONDS / SHARDS
    ratios = {
        "first_token": (fifty["first_p99_ms"] / alone["first_p99_ms"], 1.1),
        "each_token": (fifty["gap_p99_ms"] / alone["gap_p99_ms"], 1.05),
        "each_token beside all": (full["gap_p99_ms"] / alone["gap_p99_ms"], 1.05),
        "idle": (0.9, runs["all"].lines / capacity.lines / idle),
    }
    missed = [name for name, (least, most) in ratios.items() if least > most]
    print(json.dumps({**found, "ratios": ratios, "missed": missed}))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
