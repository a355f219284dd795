"""A model that sleeps, wakes up and goes over to other weights while requests run."""

from __future__ import annotations

import asyncio
import shutil
import time
import weakref

import pytest

from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.engine import served_engine
from octavo.engine.async_engine import AsyncEngine, Stream
from octavo.engine.served_engine import Loading, ServedEngine
from octavo.errors import BadRequest, EngineDead, ModelError
from octavo.request import Request

PROMPT = list(range(30, 94))
KINDS = {"native": {}, "ahead": {"async_scheduling": True}, "torch": {"dtype": "float16"}}
SHORT = 0.05


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(served_engine, "QUIET_SECONDS", SHORT)


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of a tiny model."""
    return shutil.copytree(tiny_model("llama3"), tmp_path / "model")


@pytest.fixture
def other(model, tmp_path, other_weights):
    """The same architecture with other weights, and no tokenizer."""
    folder = shutil.copytree(model, tmp_path / "other", ignore=shutil.ignore_patterns("tokenizer*"))
    other_weights(folder)
    return folder


@pytest.fixture
def load(model):
    """Loads it; all are closed in the end."""
    loaded = []

    def make(source=model, **settings):
        loaded.append(ServedEngine.load(str(source), EngineConfig(kv_cache_bytes=2**21, **settings)))
        return loaded[-1]

    yield make
    for each in loaded:
        each.close()


def request(name, tokens=8, **fields):
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    return Request(request_id=name, prompt_token_ids=[*PROMPT], params=params, **fields)


async def said(served, asked, begun=None):
    """The tokens of a request; `begun` is set once the first is there."""
    stream, tokens = Stream(asyncio.get_running_loop()), []
    served.submit(asked, stream)
    while True:
        for update in await stream.take():
            tokens += update.token_ids
            if begun is not None:
                begun.set()
            if update.finish_reason is not None:
                assert update.finish_reason == "length"
                return tokens


def ask(served, tokens=8, **fields):
    return asyncio.run(said(served, request("a", tokens, **fields)))


def memory_of(executor):
    """An array of its weights, and one of its cache."""
    if hasattr(executor, "_model"):
        return executor._model.matrices[0].data, executor._kv._data
    return executor._decoder.weights.embedding, executor._kv._parts[0]


def go_over(served, path):
    name = served.stage(str(path)).result()
    served.switch().result()
    assert served.name == name
    return name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [1, 2])
def test_a_model_that_slept_says_what_it_said_and_kept_no_memory(load, kind, level):
    served = load(**KINDS[kind])
    before, phases = ask(served), []
    served.on_change = lambda: phases.append((served.phase, served.level))
    held = list(map(weakref.ref, memory_of(getattr(served.engine.executor, "executor", served.engine.executor))))
    served.sleep(level).result()
    assert all(each() is None for each in held)
    assert phases == [("dozing", level), ("asleep", level)]
    served.check_health()
    assert served.stats().state.num_sequences == 0
    with pytest.raises(EngineDead, match="the model is asleep"):
        ask(served)
    served.wake_up().result()
    assert ask(served) == before
    assert phases[2:] == [("waking", level), ("awake", 0)]


def test_what_runs_is_ended_before_it_sleeps_and_who_comes_too(load):
    served = load()
    unbroken = ask(served, 200)

    async def scenario():
        begun = asyncio.Event()
        first = asyncio.create_task(said(served, request("first", 200), begun))
        await begun.wait()
        asleep = served.sleep(1)
        while served.phase != "dozing":
            await asyncio.sleep(0)
        second = asyncio.create_task(said(served, request("second", 200)))
        await asyncio.wrap_future(asleep)
        assert first.done()
        return await first, await second

    assert asyncio.run(scenario()) == (unbroken, unbroken)
    assert served.phase == "asleep"


def test_who_wakes_it_before_it_sleeps_keeps_it_awake(load, monkeypatch):
    monkeypatch.setattr(served_engine, "QUIET_SECONDS", 60.0)
    served = load()
    before, asleep = ask(served), served.sleep(1)
    while served.phase != "dozing":
        pass
    served.wake_up().result()
    with pytest.raises(BadRequest, match="woken up before"):
        asleep.result()
    assert served.phase == "awake"
    assert ask(served) == before


def test_files_that_changed_while_it_slept_are_not_taken_for_the_old_ones(load, model, other_weights):
    served = load()
    served.sleep(1).result()
    other_weights(model)
    with pytest.raises(ModelError, match="have changed while the model slept"):
        served.wake_up().result()
    assert served.phase == "asleep"
    go_over(served, model)
    served.wake_up().result()
    assert ask(served) == ask(load(model))


@pytest.mark.parametrize("two", [True, False], ids=["beside", "in place"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_request_is_answered_by_one_set_of_weights(load, other, monkeypatch, kind, two):
    monkeypatch.setattr(Loading, "holds_two", two)
    served = load(**KINDS[kind])
    old = ask(served, 60)
    new = ask(load(_with_tokenizer(other, served), **KINDS[kind]), 60)
    assert old != new
    first_name = served.name

    async def scenario():
        begun = asyncio.Event()
        first = asyncio.create_task(said(served, request("first", 60), begun))
        await begun.wait()
        name = await asyncio.wrap_future(served.stage(str(other)))
        switched = served.switch()
        while served.name == first_name:
            await asyncio.sleep(0.001)
        await asyncio.wrap_future(switched)
        second = await said(served, request("second", 60, made_for=name))
        return await first, second

    assert asyncio.run(scenario()) == (old, new)
    assert ask(served, 60) == new  # from the cache
    while served._older:
        time.sleep(0.01)
    with pytest.raises(EngineDead, match="the weights that this request was made for are gone"):
        ask(served, 1, made_for=first_name)


def _with_tokenizer(folder, served):
    whole = folder.parent / "whole"
    if not whole.exists():
        shutil.copytree(folder, whole)
        for file in served._source.path.glob("tokenizer*"):
            shutil.copy(file, whole)
    return whole


def test_going_back_is_going_to_the_weights_of_before(load, model, other):
    served = load()
    old, name = ask(served), served.name
    assert go_over(served, other).startswith(f"{other}#weights=")
    assert ask(served) != old
    assert go_over(served, model) == name
    assert ask(served) == old


def test_a_model_that_sleeps_goes_over_too(load, other):
    served = load()
    old = ask(served)
    served.sleep(2).result()
    go_over(served, other)
    assert served.phase == "asleep"
    served.wake_up().result()
    assert ask(served) != old


@pytest.mark.parametrize("wakes", [False, True])
def test_a_sleep_between_the_two_steps_of_a_change_does_not_keep_the_old_weights(load, other, wakes):
    served = load()
    old, name = ask(served), served.stage(str(other)).result()
    served.sleep(2).result()
    assert served._staged[1] is None  # its memory was given back
    if wakes:
        served.wake_up().result()
    served.switch().result()
    served.wake_up().result()
    assert served.name == name
    assert ask(served) != old


def test_what_is_not_for_this_model_changes_nothing(load, model, other, tiny_model, tmp_path):
    served = load()
    old, name = ask(served), served.name
    smaller = other / "model.safetensors"
    smaller.write_bytes(smaller.read_bytes()[:-100])
    changed = shutil.copytree(model, tmp_path / "tokens")
    text = (changed / "tokenizer.json").read_text()
    (changed / "tokenizer.json").write_text(text.replace('"a":', '"zz":', 1))
    for path, error, sentence in [
        (tiny_model("qwen3"), BadRequest, "family of the new weights is 'qwen3', of those that are served 'llama'"),
        (other, ModelError, "damaged"),
        (changed, BadRequest, "another tokenizer: "),
        (tmp_path / "nowhere", ModelError, "no model at"),
    ]:
        with pytest.raises(error, match=sentence):
            served.stage(str(path)).result()
    with pytest.raises(BadRequest, match="no weights were made ready"):
        served.switch().result()
    assert (served.phase, served.name, ask(served)) == ("awake", name, old)


def test_where_the_new_ones_cannot_be_loaded_in_place_the_old_ones_serve_again(load, other, monkeypatch):
    monkeypatch.setattr(Loading, "holds_two", False)
    served = load()
    old, name = ask(served), served.name
    served.stage(str(other)).result()
    (other / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the old ones serve again"):
        served.switch().result()
    assert (served.phase, served.name, ask(served)) == ("awake", name, old)


def test_an_engine_that_is_recorded_or_made_by_hand_stays_as_it_is(fake, load, tmp_path):
    by_hand = AsyncEngine(fake.engine())
    for served in (ServedEngine(by_hand), load(record=str(tmp_path / "record"))):
        with pytest.raises(BadRequest):
            served.sleep(1).result()
        assert served.phase == "awake"
    by_hand.close()


def test_a_shard_that_starts_later_has_the_weights_that_were_put_in_place(load, model, other):
    served = load()
    go_over(served, other)
    later = ServedEngine.load(str(model), EngineConfig(kv_cache_bytes=2**21), instead=str(other))
    try:
        assert (later.name, ask(later)) == (served.name, ask(served))
        assert go_over(later, model) == go_over(served, model)
    finally:
        later.close()
    with pytest.raises(ModelError, match="cannot be loaded"):
        ServedEngine.load(str(model), EngineConfig(kv_cache_bytes=2**21), instead="/nowhere")


def test_offline(model):
    llm = LLM(str(model), progress=False, kv_cache_bytes=2**21)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    before = llm.generate([PROMPT], params, use_tqdm=False)[0].outputs[0].token_ids
    llm.sleep()
    llm.sleep(2)
    assert llm.is_sleeping
    with pytest.raises(BadRequest, match="wake_up"):
        llm.generate([PROMPT], params, use_tqdm=False)
    llm.wake_up()
    assert llm.generate([PROMPT], params, use_tqdm=False)[0].outputs[0].token_ids == before
    with pytest.raises(BadRequest, match="level must be 1 or 2"):
        llm.sleep(3)
    llm.sleep()
    (model / "config.json").touch()
    with pytest.raises(ModelError, match="have changed"):
        llm.wake_up()
    llm.close()


@pytest.mark.parametrize("dtype", ["float32", "float16"], ids=["native", "torch"])
def test_an_encoder_sleeps_too(tiny_encoder, dtype):
    llm = LLM(str(tiny_encoder("bert")), progress=False, dtype=dtype)
    (before,) = llm.embed(["a text"], use_tqdm=False)
    llm.sleep()
    with pytest.raises(BadRequest, match="wake_up"):
        llm.embed(["a text"], use_tqdm=False)
    llm.wake_up()
    assert llm.embed(["a text"], use_tqdm=False)[0].outputs.embedding == before.outputs.embedding
    llm.close()


def test_ranks_sleep_too(model):
    """Their processes end, and others come."""
    llm = LLM(str(model), progress=False, kv_cache_bytes=2**21, tensor_parallel_size=2, threads=1)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    before = llm.generate([PROMPT], params, use_tqdm=False)[0].outputs[0].token_ids
    processes = llm.engine.executor.others.processes._processes
    llm.sleep()
    assert all(process.poll() is not None for process in processes)
    llm.wake_up()
    assert llm.generate([PROMPT], params, use_tqdm=False)[0].outputs[0].token_ids == before
    llm.close()
