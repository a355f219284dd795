"""Requests below all others take what is left over, and nobody else feels them."""

from __future__ import annotations

import itertools
import random
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.cost_model import Cost, CostModel
from octavo.engine.below import part_of
from octavo.engine.budget import prompt_budget
from octavo.engine.plan import StepPlan
from octavo.recording import find_recordings
from octavo.rehearsal.fleet import Fleet, SimulatedShard
from octavo.rehearsal.replay import replay_file
from octavo.rehearsal.simulated import load_profile
from octavo.request import BELOW_ALL, Request, SamplingParams, SequenceUpdate
from octavo.routing.router import RoutingConfig
from octavo.step import GaveWay


class Known(CostModel):
    """A machine of which everything is known."""

    coefficients = Cost(0.01, 1e-4, 0.0, 0.0, 0.0)  # type: ignore[assignment]  # a property there
    ready = True


def below(fake, name, prompt, **params):
    request = fake.request(name, prompt, **params)
    request.priority = BELOW_ALL
    return request


def test_they_wait_while_anything_else_runs_and_say_what_they_would_have_said(fake):
    engine = fake.engine()
    engine.add(below(fake, "batch", [1, 2, 3], max_tokens=8))
    updates = engine.step()
    engine.add(fake.request("chat", [4, 5, 6], max_tokens=8))
    updates += [update for _ in range(30) for update in engine.step()]
    names = [update.request_id for update in updates]
    first, last = names.index("chat"), len(names) - names[::-1].index("chat")
    assert names[first:last].count("batch") <= 1, "what was launched before the other came"
    for name, prompt in {"batch": [1, 2, 3], "chat": [4, 5, 6]}.items():
        tokens = [token for update in updates if update.request_id == name for token in update.token_ids]
        assert tokens == fake.expected(prompt, 8)


def test_they_give_up_places_and_blocks_at_once(fake):
    engine = fake.engine(num_blocks=40, max_num_seqs=2)
    for number in range(2):
        engine.add(below(fake, f"r{number}", [number] * 40, max_tokens=20))
    for _ in range(4):
        engine.step()
    assert engine.scheduler.running_requests() == ["r0", "r1"]
    prompt = list(range(100, 160))
    engine.add(fake.request("chat", prompt, max_tokens=2))
    engine.step()
    assert engine.scheduler.running_requests() == ["chat", "r0"]
    assert engine.scheduler.counters.preemptions == 1
    out = fake.run(engine)
    assert out["chat"][0] == fake.expected(prompt, 2)
    engine.scheduler.check_integrity()


def test_a_shard_tells_its_load_as_if_they_were_not_there(fake):
    engine = fake.engine(max_num_seqs=2)
    idle = engine.scheduler.state()
    for number in range(5):
        engine.add(below(fake, f"r{number}", list(range(9)), max_tokens=8))
    assert engine.scheduler.state() == idle
    engine.step()
    assert engine.scheduler.state() == idle
    fake.run(engine)


@pytest.mark.parametrize(("step", "beside"), [(0.0, 0), (0.01, 3), (1.0, 6)])
def test_beside_others_as_many_decode_as_make_the_step_little_longer(fake, step, beside):
    engine = fake.engine(max_num_seqs=8)
    for number in range(6):
        engine.add(below(fake, f"r{number}", [number], max_tokens=20))
    engine.step()
    engine.add(fake.request("chat", [7], max_tokens=20))
    engine.step()
    engine.step()
    model = Known()
    model.coefficients = Cost(step, 1e-4, 0.0, 0.0, 0.0)
    part = part_of(engine.scheduler._running, None, model)
    assert part == (1 + beside, beside, False)
    assert part.held(engine.scheduler._running) == 6 - beside


def test_prompts_of_theirs_make_no_step_long(fake):
    config = EngineConfig(block_size=16, max_num_batched_tokens=1000)
    assert prompt_budget([], config, Known(), alone=True) == pytest.approx(50, abs=1)
    assert prompt_budget([], config, Known()) == 1000


def gives_way(model, seed):
    """Have a fake end steps that may be ended, now and then, after it has stored nonsense for all of their tokens."""
    chance, launch, ended = random.Random(seed), model.launch, []

    def launch_or_end(batch):
        if batch.gives_way is None or chance.random() < 0.5:
            return launch(batch)
        sources, targets = [s for s, _ in batch.block_copies], [t for _, t in batch.block_copies]
        model.cache[targets] = model.cache[sources]
        for s in range(batch.num_seqs):
            length, count = batch.context_lens[s], batch.query_start[s + 1] - batch.query_start[s]
            model.write(batch, s, np.arange(length - count, length), np.full(count, -7))
        ended.append(batch)

        def wait():
            raise GaveWay

        return wait

    model.launch = launch_or_end
    return ended


@given(seed=st.integers(0, 2**32), caching=st.booleans(), ahead=st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_step_that_gave_way_leaves_nothing_behind(fake, seed, caching, ahead):
    chance = random.Random(seed)
    engine = fake.engine(num_blocks=90, enable_prefix_caching=caching, async_scheduling=ahead)
    engine.scheduler.cost_model = Known()  # whose steps are long
    ended = gives_way(fake.model(engine), seed)
    asked, said = {}, {}
    for number in range(120):
        if chance.random() < 0.3:
            prompt = [chance.randrange(2)] * chance.randrange(1, 40) + [number] * chance.randrange(5)
            params = {"max_tokens": chance.randrange(1, 30)}
            if chance.random() < 0.8:
                engine.add(below(fake, f"r{number}", prompt, **params))
            else:
                engine.add(fake.request(f"r{number}", prompt, n=chance.choice([1, 3]), **params))
            asked[f"r{number}"] = prompt
        if asked and chance.random() < 0.05:
            asked.pop(gone := chance.choice(list(asked)))
            engine.abort(gone)
        for update in engine.step():
            said.setdefault((update.request_id, update.index), []).extend(update.token_ids)
        engine.check_integrity()
    for name, sequences in fake.run(engine).items():
        for index, tokens in sequences.items():
            said.setdefault((name, index), []).extend(tokens)
    for (name, index), tokens in said.items():
        if name in asked:
            assert tokens == fake.expected(asked[name], len(tokens), (index * 0x9E3779B97F4A7C15) % 2**64)
    assert {name for name, _ in said} >= asked.keys()
    assert ended, "none gave way"
    assert engine.pool.num_owned == 0
    engine.executor.close()


def test_steps_that_gave_way_are_decided_again_from_a_recording(fake, tmp_path):
    engine = fake.engine(record=str(tmp_path), async_scheduling=True)
    fake.model(engine).seconds = 0.02
    ended = gives_way(fake.model(engine), 1)
    for number in range(40):
        engine.add(below(fake, f"r{number}", [number % 3] * 30, max_tokens=9))
        engine.step()
    fake.run(engine)
    engine.close()
    assert ended
    (file,) = find_recordings(tmp_path)
    assert replay_file(file).difference is None


SECONDS = 20.0


class Shard(Fleet):
    """One shard in simulated time: people who come two a second, and lines of a batch, of which 40 are always there."""

    def __init__(self, people: bool, lines: int) -> None:
        config = EngineConfig(rehearsal="llama-8b-h100", max_num_seqs=32, max_num_batched_tokens=2048, target_itl=0.05)
        super().__init__(load_profile("llama-8b-h100"), 1, config, RoutingConfig())
        self.first: list[float] = []
        self.gaps: list[float] = []
        self.lines = 0  # tokens of theirs
        self.busy = 0.0
        self._last: dict[str, float] = {}
        self._names, self._chance = map(str, itertools.count()), random.Random(1)
        chance, at = random.Random(2), 0.0
        while people and (at := at + chance.expovariate(2)) < SECONDS:
            self.at(at, partial(self._ask, 0, chance.choice([40, 100, 300, 1000]), 64))
        for _ in range(lines):
            self.at(0.0, self._line)
        self.run(until=SECONDS)

    def _line(self) -> None:
        self._ask(BELOW_ALL, self._chance.randrange(50, 200), 64)

    def _ask(self, priority: int, size: int, tokens: int) -> None:
        prompt = [self._chance.randrange(1000) for _ in range(size)]
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        self.send(Request(request_id=next(self._names), prompt_token_ids=prompt, params=params, priority=priority))

    def _commit(self, shard: SimulatedShard, plan: StepPlan, seconds: float) -> None:
        self.busy += seconds
        super()._commit(shard, plan, seconds)

    def _took(self, update: SequenceUpdate, *, ended: bool) -> None:
        super()._took(update, ended=ended)
        name, trip = update.request_id, self.trips[update.request_id]
        if trip.request.priority == BELOW_ALL:
            self.lines += len(update.token_ids)
            return self._line() if ended else None
        before = self._last.get(name)
        (self.first if before is None else self.gaps).append(self.now - (trip.sent if before is None else before))
        self._last[name] = self.now
        return None

    @property
    def felt(self) -> tuple[float, float]:
        """99th percentiles of the first token and of the time between two."""
        return float(np.percentile(self.first, 99)), float(np.percentile(self.gaps, 99))


def test_people_hardly_feel_a_batch_and_it_takes_what_they_leave():
    alone, capacity, beside = Shard(True, 0), Shard(False, 40), Shard(True, 40)
    idle = 1 - alone.busy / SECONDS
    assert beside.felt[0] <= 1.1 * alone.felt[0]
    assert beside.felt[1] <= 1.05 * alone.felt[1]
    assert beside.lines >= 0.9 * capacity.lines * idle
