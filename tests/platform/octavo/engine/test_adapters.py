"""Adapters in the engine: the tokens of each whatever is beside it, and who waits for a cold one."""

from __future__ import annotations

import shutil
import threading
import time
from itertools import count, product

import pytest

from octavo import LLM, LoRARequest, SamplingParams
from octavo.constraint import StructuredOutputs
from octavo.engine.adapters import MOST_PASSED, Adapters
from octavo.engine.batch import build_batch
from octavo.errors import BadRequest, ModelError, Overloaded
from octavo.request import BELOW_ALL, Adapter, Placement, Request

PARAMS = SamplingParams(seed=3, max_tokens=12, ignore_eos=True)
PROMPTS = [list(range(3, 60)), list(range(3, 50)), [7]]


@pytest.fixture(scope="module")
def loras(make_adapter):
    return [None, *(LoRARequest(f"a{seed}", seed, str(make_adapter("llama3", seed=seed))) for seed in (1, 2))]


@pytest.fixture(scope="module")
def llm(tiny_model):
    llm = load(tiny_model)
    yield llm
    llm.close()


def load(tiny_model, **settings):
    settings = {"kv_cache_bytes": 2**22, "max_model_len": 128} | settings
    return LLM(str(tiny_model("llama3")), progress=False, **settings)


def tokens(llm, prompts, params, loras):
    outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=loras)
    return [[line.token_ids for line in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def alone(tiny_model, loras):
    """Each prompt with each adapter, one after the other and without a cache."""
    llm = load(tiny_model, enable_prefix_caching=False)
    found = [tokens(llm, [prompt], PARAMS, lora)[0] for prompt, lora in product(PROMPTS, loras)]
    assert len({str(lines) for lines in found}) == len(found)
    yield found
    llm.close()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 16},
        {"kv_cache_bytes": 11 * 16 * 3 * 2 * 2 * 16 * 4, "max_model_len": 96},  # eleven blocks: they preempt each other
        {"async_scheduling": True},
        {"block_size": 8},  # which the native decoder does not have
    ],
    ids=["cache", "chunks", "preemption", "ahead", "torch"],
)
def test_tokens_are_those_of_an_adapter_alone(tiny_model, loras, alone, settings):
    llm = load(tiny_model, **settings)
    pairs = list(product(PROMPTS, loras))
    for _ in range(2):  # the second time much of it is cached
        assert tokens(llm, [prompt for prompt, _ in pairs], PARAMS, [lora for _, lora in pairs]) == alone
    assert (llm.engine.scheduler.counters.preemptions > 0) == ("max_model_len" in settings)
    assert not llm.engine.adapters.in_use
    llm.close()


def test_two_ranks_cut_adapters_with_their_layers(tiny_model, loras, alone):
    llm = load(tiny_model, tensor_parallel_size=2, threads=1)
    pairs = list(product(PROMPTS, loras))
    assert tokens(llm, [prompt for prompt, _ in pairs], PARAMS, [lora for _, lora in pairs]) == alone
    gone = LoRARequest("gone", 1, loras[1].lora_path)
    adapter = Adapter(gone.lora_name, "0" * 32, gone.lora_path)  # the file has other contents by now
    llm.engine.add(Request(request_id="late", prompt_token_ids=[1], adapter=adapter))
    updates = []
    while not updates:
        updates = llm.engine.step()
    assert "has changed since it was loaded" in str(updates[0].stop_reason)
    assert tokens(llm, PROMPTS[:1], PARAMS, loras[1]) == alone[1:2]
    llm.close()


def test_samples_and_grammars_of_an_adapter(llm, loras):
    params = [
        SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=20, structured_outputs=StructuredOutputs(regex="[ab]{3}|c+d")),
    ]
    pairs = list(product(params, loras))
    one_by_one = [tokens(llm, [PROMPTS[0]], p, lora)[0] for p, lora in pairs]
    together = tokens(llm, [PROMPTS[0]] * len(pairs), [p for p, _ in pairs], [lora for _, lora in pairs])
    assert together == one_by_one
    assert len({str(lines) for lines in together[:3]}) == 3


def test_a_request_goes_on_with_its_adapter_where_another_engine_left_it(llm, loras, alone):
    adapter, expected = loras[1].adapter(), alone[1][0]
    request = Request(request_id="moved", prompt_token_ids=PROMPTS[0], params=PARAMS, adapter=adapter,
                      emitted=[expected[:5]])  # fmt: skip
    llm.engine.add(request)
    found = []
    while llm.engine.has_work:
        found += [token for update in llm.engine.step() for token in update.token_ids]
    assert found == expected[5:]


def test_blocks_are_shared_within_an_adapters_contents_alone(tiny_model, make_adapter, tmp_path, loras):
    """A name with other contents finds nothing of the old ones, and answers as they say."""
    llm = load(tiny_model)

    def cached(lora):
        return llm.generate([PROMPTS[0]], PARAMS, use_tqdm=False, lora_request=lora)[0].num_cached_tokens

    folder = tmp_path / "same"
    shutil.copytree(loras[1].lora_path, folder)
    same = LoRARequest("any name", 7, str(folder))
    assert [cached(lora) for lora in (None, loras[1], loras[2], None, same)] == [0, 0, 0, 48, 48]
    shutil.copytree(loras[2].lora_path, folder, dirs_exist_ok=True)
    assert cached(LoRARequest("any name", 7, str(folder))) == 48  # those of the other adapter, which it is now
    shutil.copytree(make_adapter("llama3", seed=9), folder, dirs_exist_ok=True)
    assert cached(same) == 0
    llm.close()


def test_what_cannot_be_loaded_ends_its_own_request(llm, loras, make_adapter, tmp_path):
    with pytest.raises(ModelError, match=r"holds no adapter_model\.safetensors"):
        tokens(llm, [[1]], PARAMS, LoRARequest("none", 1, str(tmp_path)))
    other = LoRARequest("other", 1, str(make_adapter("llama_biases")))
    first, second = llm.generate([[1], [1]], PARAMS, use_tqdm=False, lora_request=[other, loras[1]])
    assert first.outputs[0].finish_reason == "error"
    assert "it was made for another model" in str(first.outputs[0].stop_reason)
    assert second.outputs[0].finish_reason == "length"
    params = SamplingParams(n=2, max_tokens=5)  # the first of the two has ended on another shard
    moved = {"request_id": "moved", "prompt_token_ids": [1], "params": params, "emitted": [None, [5]]}
    llm.engine.add(Request(**moved, adapter=other.adapter()))
    updates = []
    while llm.engine.has_work:
        updates += llm.engine.step()
    assert [(update.index, update.finish_reason) for update in updates] == [(1, "error")]


def test_steps_without_adapters_name_none(llm, monkeypatch):
    monkeypatch.setattr(llm.engine._batches, "build", lambda plan: seen.append(build_batch(plan)) or seen[-1])
    seen = []
    tokens(llm, [[1], [2]], PARAMS, None)
    assert {batch.adapters for batch in seen} == {None}


# ---- who waits ------------------------------------------------------------------------------------------------------


class Loader:
    """Loads when it is let: each adapter takes the bytes that its path says."""

    def __init__(self):
        self.may_load, self.loaded = threading.Event(), []
        self.may_load.set()

    def load_adapter(self, adapter):
        assert self.may_load.wait(30)
        if adapter.path == "bad":
            raise RuntimeError("whatever")
        self.loaded.append(adapter.digest)
        return int(adapter.path)

    def drop_adapter(self, digest):
        self.loaded.remove(digest)


NUMBER = count()


def wants(digest, size="10"):
    return Request(request_id=str(next(NUMBER)), prompt_token_ids=[1], adapter=Adapter(digest, digest, size))


def take(adapters, request):
    """Have it wait until it may run; what is wrong, or None."""
    if adapters.hold(request):
        return None
    adapters.wait_for(request, None)
    errors = []
    while request.request_id in adapters.waiting:
        adapters.pause()
        adapters.arrived(lambda request, sentence: errors.append(sentence))
    return errors[0] if errors else None


def test_those_unused_for_longest_make_room():
    adapters = Adapters(loader := Loader(), 30, 9)
    requests = {digest: wants(digest) for digest in "abc"}
    for request in requests.values():
        assert take(adapters, request) is None
        adapters.release(request.request_id)
    again = wants("a")
    assert adapters.hold(again)
    assert take(adapters, wants("d")) is None
    assert loader.loaded == ["a", "c", "d"]
    adapters.release(again.request_id)
    assert take(adapters, wants("e", "20")) is None
    assert sorted(loader.loaded) == ["d", "e"]


def test_what_is_in_use_stays_and_newcomers_wait():
    adapters = Adapters(loader := Loader(), 20, 2)
    held = [wants("a"), wants("b")]
    assert [take(adapters, request) for request in held] == [None, None]
    late = [wants("c"), wants("c")]
    for request in late:
        adapters.wait_for(request, None)
    with pytest.raises(Overloaded, match="2 requests wait for adapters"):
        adapters.wait_for(wants("c"), None)
    with pytest.raises(BadRequest, match="already in use"):
        adapters.wait_for(late[0], None)
    twin = Request(request_id=late[0].request_id, prompt_token_ids=[1], adapter=held[0].adapter)
    assert not adapters.hold(twin)  # what one of the two lets go would be the other's
    assert adapters.arrived(pytest.fail) == []
    assert loader.loaded == ["a", "b"]
    adapters.release(held[0].request_id)
    ready = []
    while not ready:
        ready = adapters.arrived(pytest.fail)
        adapters.pause()
    assert [each.request for each in ready] == late
    assert loader.loaded == ["b", "c"]


def test_adapters_that_are_asked_for_all_the_time_keep_nobody_out():
    adapters = Adapters(loader := Loader(), 20, 99)
    running = [wants("a"), wants("b")]
    assert [take(adapters, request) for request in running] == [None, None]
    adapters.wait_for(cold := wants("c"), None)
    for _ in range(MOST_PASSED):  # each goes when the next has come
        gone, running[0] = running[0], wants("a")
        assert adapters.hold(running[0])
        adapters.release(gone.request_id)
    assert adapters.arrived(pytest.fail) == []
    late = [wants("a"), wants("b")]
    for request in late:
        assert not adapters.hold(request)
        adapters.wait_for(request, None)
    assert adapters.arrived(pytest.fail) == []
    adapters.release(running[0].request_id)
    ready = []
    while len(ready) < 2:
        ready += adapters.arrived(pytest.fail)
        adapters.pause()
    assert [each.request for each in ready] == [cold, late[1]]  # whoever has the adapter that made room waits in turn
    assert (loader.loaded, list(adapters.waiting)) == (["b", "c"], [late[0].request_id])


def test_one_too_large_or_broken_is_refused():
    adapters = Adapters(loader := Loader(), 20, 2)
    assert "lora_bytes is 20: raise it" in take(adapters, wants("big", "21"))
    with pytest.raises(BadRequest, match="raise it"):  # it is not read again
        adapters.wait_for(wants("big", "21"), None)
    assert "RuntimeError" in take(adapters, wants("odd", "bad"))
    assert loader.loaded == []
    assert take(adapters, wants("small")) is None


def test_streams_go_on_while_an_adapter_loads(llm, loras, make_adapter, monkeypatch):
    executor, loader = llm.engine.executor, Loader()
    load_it = executor.load_adapter
    loader.may_load.clear()
    monkeypatch.setattr(executor, "load_adapter", lambda adapter: loader.may_load.wait(30) and load_it(adapter))
    cold = LoRARequest("cold", 1, str(make_adapter("llama3", seed=77))).adapter()
    for name, adapter in [("waits", cold), ("leaves", cold), ("runs", None)]:
        placement = Placement(name, "here", "cold", 0, 0.0)
        llm.engine.add(
            Request(request_id=name, prompt_token_ids=[1, 2], params=PARAMS, adapter=adapter, placement=placement)
        )
    state = llm.engine.state()  # who scales and who says when to come again sees them all
    assert (state.queued, state.backlog_tokens, list(llm.engine.tickets)) == (3, 6, ["waits", "leaves", "runs"])
    ended = set()
    while "runs" not in ended:
        ended |= {update.request_id for update in llm.engine.step() if update.finish_reason}
    assert (ended, llm.engine.state().queued) == ({"runs"}, 2)
    assert [update.finish_reason for update in llm.engine.abort("leaves")] == ["abort"]
    late = {"request_id": "late", "prompt_token_ids": [1], "params": PARAMS, "adapter": cold}
    for name, more in [("late", {"deadline": 0.2}), ("below", {"priority": BELOW_ALL})]:
        llm.engine.add(Request(**late | more | {"request_id": name}))
    assert llm.engine.state().queued == 2  # the third is below all others
    time.sleep(0.21)  # its deadline counts from when it came, not from when its adapter has
    loader.may_load.set()
    reasons = {}
    while llm.engine.has_work:
        reasons |= {update.request_id: update.finish_reason for update in llm.engine.step() if update.finish_reason}
    assert reasons == {"waits": "length", "below": "length", "late": "late"}
    assert (llm.engine.state().queued, len(llm.engine.tickets)) == (0, 3)  # nobody is named twice
