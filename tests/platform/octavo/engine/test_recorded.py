"""What is recorded is decided again: every way of scheduling, without a model, without tokens, byte for byte."""

from __future__ import annotations

import json
import random
import stat

import pytest

from octavo.beams import BeamSearch
from octavo.constraint import Grammar, Thinking
from octavo.engine import arrivals
from octavo.engine.recorded import Committed, Scheduled
from octavo.errors import OctavoError
from octavo.pooling import Pooling, PoolingInfo
from octavo.recording import find_recordings
from octavo.rehearsal.replay import read_recording, replay_file
from octavo.rehearsal.traffic import read_traffic
from octavo.request import Request, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {"ab": {"type": "integer"}},
    "required": ["ab"],
    "additionalProperties": False,
}
JSON = Grammar(source=json.dumps({"grammars": [{"json_schema": SCHEMA}]}), is_json=True)
KINDS = [
    {}, {}, {}, {"n": 3}, {"n": 2, "best_of": 9}, {"logprobs": 1}, {"prompt_logprobs": 1}, {"stop_token_ids": [0, 1]},
    {"max_tokens": 0}, {"max_tokens": 0, "n": 2}, {"allowed_token_ids": [5, 6], "bad_token_ids": [[6, 6]]},
    {"thinking": Thinking(budget=2, close=(7, 8, 9))}, {"thinking": Thinking(budget=1, close=(7, 8)), "logprobs": 0},
]  # fmt: skip
GRAMMARS = [
    {"grammar": JSON}, {"grammar": JSON, "logprobs": 0, "n": 2}, {"grammar": JSON, "max_tokens": 4},
    {"grammar": Grammar(source='start: "a" /[a-c]{3}/ "the end is here"', after_tokens=(4,), again=True)},
]  # fmt: skip


def ask(fake, engine, drawn: random.Random, name: str, kinds) -> None:
    prompt = [drawn.randrange(5, 9) for _ in range(drawn.randrange(1, 40))] + [4] * (drawn.random() < 0.05)
    params = {"max_tokens": drawn.randrange(1, 20), **drawn.choice(kinds)}
    request = fake.request(name, prompt, drawn.randrange(9), priority=drawn.randrange(2), **params)
    if drawn.random() < 0.1:
        request.pooling, request.params = Pooling("embed"), SamplingParams()
    elif drawn.random() < 0.2 and params["max_tokens"] > 3 and "best_of" not in params:
        request.emitted = [[5, 6, 5], *[None] * (request.params.n - 1)]
    request.alone = drawn.random() < 0.1
    if engine.config.scheduling_policy == "fair" and not request.alone:
        request.deadline = drawn.choice([None, None, 0.001])
    request.tenant, request.weight = drawn.choice([("", 1.0), ("a", 2.0)])
    try:
        engine.add(request)
    except OctavoError:
        return


def storm(fake, engine, drawn: random.Random, kinds, *, poison: bool) -> None:
    model = fake.model(engine)
    launch, names = model.launch, 0

    def failing(batch):
        if poison and (4 in batch.token_ids or (len(model.batches) == 60 and batch.num_tokens > 1)):
            model.batches.append(batch)
            raise RuntimeError("poison")
        return launch(batch)

    model.launch = failing
    for _ in range(200):
        if drawn.random() < 0.4:
            ask(fake, engine, drawn, f"r{names}", kinds)
            names += 1
        if drawn.random() < 0.08 and names:
            engine.abort(f"r{drawn.randrange(names)}", drawn.choice([None, None, 0]))
        if engine.has_work:
            engine.step()
    while engine.has_work:
        engine.step()
    engine.close()


def replayed(folder):
    (file,) = find_recordings(folder)
    return replay_file(file)


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("grammars", [False, True])
@pytest.mark.parametrize("windows", [None, [None, 9, 9]])
def test_every_way_of_scheduling_is_decided_again(fake, tiny_tokenizer, tmp_path, ahead, poison, grammars, windows):
    drawn = random.Random(f"{ahead}{poison}{grammars}")
    settings = {"target_itl": 0.004} if poison else {"speculation": True, "scheduling_policy": "fair"}
    settings |= {"max_model_len": 90, "windows": windows}
    engine = fake.engine(
        40 if windows is None else 90,
        record=str(tmp_path),
        tokenizer=tiny_tokenizer if grammars else None,
        pooling=PoolingInfo(dimensions=5),
        async_scheduling=ahead,
        max_num_queued_requests=9,
        **settings,
    )
    fake.model(engine).parrot = 9
    fake.model(engine).seconds_each = 1e-4
    storm(fake, engine, drawn, KINDS + GRAMMARS * grammars, poison=poison)
    found = replayed(tmp_path)
    assert found.difference is None
    assert found.frames["Committed"] > 100
    decided = [each["kind"] for frame in read_recording(found.path) for each in getattr(frame, "decisions", ())]
    assert set(decided) >= {"admit", "wait", "finish"}
    assert found.frames["Added"] > 40


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("grammars", [False, True])
def test_searches_are_decided_again(fake, tiny_tokenizer, tmp_path, ahead, poison, grammars):
    """Beside other requests, in a pool that is short, so that searches begin again."""
    drawn = random.Random(f"{ahead}{poison}{grammars}")
    engine = fake.engine(30, record=str(tmp_path), tokenizer=tiny_tokenizer if grammars else None, max_model_len=90,
        async_scheduling=ahead, max_num_queued_requests=9)  # fmt: skip
    searches = [{"beams": BeamSearch(3)}, {"beams": BeamSearch(4), "n": 2, "logprobs": 1}]
    ruled = [{"beams": BeamSearch(2), "grammar": JSON}, {"grammar": JSON}]
    storm(fake, engine, drawn, [*searches, {}, {"n": 2}, *ruled * grammars], poison=poison)
    found = replayed(tmp_path)
    assert found.difference is None
    turns = [turn for frame in read_recording(found.path) if isinstance(frame, Committed) for turn in frame.turns]
    assert sum(turn.ends is not None for turn in turns) > 10
    assert any(hashes for turn in turns for hashes in turn.hashes)
    assert any(len(turn.ways) < sum(count for _, count in turn.ways) for turn in turns)
    (machine,) = read_traffic(tmp_path).machines
    assert machine.steps


def test_an_encoder(fake, tmp_path):
    engine = fake.encoder(record=str(tmp_path))
    for number in range(9):
        request = Request(request_id=f"r{number}", prompt_token_ids=[5] * (7 * number + 1), pooling=Pooling("embed"))
        engine.add(request)
    fake.run(engine)
    engine.close()
    assert replayed(tmp_path).difference is None


def test_neither_tokens_nor_texts_are_written(fake, tmp_path):
    engine = fake.engine(record=str(tmp_path / "shard"))
    request = fake.request("r", [777] * 9, stop=["a secret"], cache_salt="a secret", predicted=[777, 778])
    request.session = request.asker = "a secret"
    engine.add(request)
    fake.run(engine)
    engine.close()
    (file,) = find_recordings(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    begun, added = list(read_recording(file))[:2]
    assert begun.name == "shard"
    assert added.request["prompt"] == 9
    assert 777 not in _numbers(added.request)
    assert b"secret" not in file.read_bytes()


def _numbers(value) -> list:
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if nested is None else [number for each in nested for number in _numbers(each)]


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_what_comes_from_a_slower_tier_comes_again(fake, tmp_path, monkeypatch, ahead, poison):
    """Blocks of few prompts, in a cache for two of them, some of which do not come."""
    monkeypatch.setattr(arrivals, "compute_seconds", lambda *_: drawn.choice([0.0, 1e-6, 1e9, 1e9]))
    drawn, shelf = random.Random(f"{ahead}{poison}"), fake.Shelf(0.2)
    engine = fake.engine(12, tier=shelf, record=str(tmp_path), async_scheduling=ahead, max_num_queued_requests=9)
    kinds = [{}, {"n": 2}, {"prompt_logprobs": 1}]
    starts = [[drawn.randrange(5, 9) for _ in range(24)] for _ in range(4)]
    monkeypatch.setattr(fake, "request", with_starts(fake.request, starts, drawn))
    storm(fake, engine, drawn, kinds, poison=poison)
    found = replayed(tmp_path)
    assert found.difference is None
    seen = [frame.fetched for frame in read_recording(found.path) if isinstance(frame, Scheduled)]
    assert sum(map(len, seen)) > 20
    assert engine.stats().tier.came


def with_starts(request, starts, drawn):
    """Requests whose prompts begin with one of these."""
    return lambda name, prompt, *more, **params: request(name, drawn.choice(starts) + prompt[:9], *more, **params)
