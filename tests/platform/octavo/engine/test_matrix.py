"""Whatever changes tokens, with whatever must not: each row in each column is as the plain path has it.

A row's words say what its requests ask for; a column says how they are scheduled. The plain path computes one request
after the other, without cache, guesses, chunks or threads.
"""

from __future__ import annotations

import random

import pytest

from octavo import LLM, LoRARequest, SamplingParams
from octavo.beams import BeamSearch
from octavo.constraint import Grammar
from octavo.engine import arrivals
from octavo.request import Placement, Request

INVOCATION = [7, 8, 9]
PROMPTS = [list(range(30, 90)), [*range(30, 80), *INVOCATION, *range(5)], [5, *INVOCATION], [*INVOCATION, *range(60)]]
GRAMMAR = Grammar(source="start: /[a-d]{4}(, and so on|; [e-h]{9}) END/")

ROWS = [
    "adapter", "late", "guesses", "grammar", "n", "adapter grammar", "adapter guesses n", "grammar guesses",
    "late grammar n", "late guesses", "adapter grammar guesses n", "beam", "adapter beam", "late beam", "grammar beam",
    "adapter grammar beam guesses",
]  # fmt: skip

MODELS = {
    "llama3": (ROWS, 12 * 3 * 16),
    "gemma3": (["guesses", "late grammar n", "adapter grammar guesses n", "adapter grammar beam guesses"], 60 * 32),
    "mistral": (["guesses", "adapter grammar guesses n", "beam"], 12 * 3 * 32),
}
"""With the rows that are tried, and blocks x layers x head size of a small cache.

That holds twelve blocks, and a request may need seven: they preempt each other. Of Gemma, with four layers of five in a
window of 11 tokens, it is 60, and a request may need 35. Mistral's layers all have a window of 12.
"""

FEW_BLOCKS = {"few": True, "max_model_len": 112}

COLUMNS = {
    "cache": {},
    "chunks": {"max_num_batched_tokens": 32},
    "preemption": FEW_BLOCKS,
    "failover": {},
    "ranks": {"tensor_parallel_size": 2, "threads": 1},
    "ahead": {"async_scheduling": True},
    "all": {"max_num_batched_tokens": 32, "async_scheduling": True, "scheduling_policy": "fair", **FEW_BLOCKS},
    "peer": {"max_num_batched_tokens": 32, "async_scheduling": True, **FEW_BLOCKS},
    "disk": {"max_num_batched_tokens": 32, "async_scheduling": True, "disk_cache_bytes": 2**22, **FEW_BLOCKS},
    "host": {"max_num_batched_tokens": 32, "host_cache_bytes": 2**22, **FEW_BLOCKS},
    "host disk": {"async_scheduling": True, "host_cache_bytes": 2**18, "disk_cache_bytes": 2**22, **FEW_BLOCKS},
}

TIERS = ("disk", "host", "host disk")


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return request.param


@pytest.fixture(scope="module")
def adapters(make_adapter, model):
    folders = [make_adapter(model, seed=1), make_adapter(model, seed=2),
               make_adapter(model, seed=3, alora_invocation_tokens=INVOCATION)]  # fmt: skip
    return [LoRARequest(f"a{i}", i, str(folder)).adapter() for i, folder in enumerate(folders)]


def load(tiny_model, model, few=False, **settings):
    small = MODELS[model][1] * 16 * 2 * 2 * 4
    settings = {"kv_cache_bytes": small if few else 2**22, "max_model_len": 128, "speculation": False} | settings
    return LLM(str(tiny_model(model)), progress=False, **settings)


@pytest.fixture(scope="module")
def plain(tiny_model, model, adapters):
    """Row -> what the plain path makes of it."""
    llm = load(tiny_model, model, enable_prefix_caching=False, max_num_batched_tokens=512)
    found = {row: {} for row in MODELS[model][0]}
    for row, told in found.items():
        for request in requests(row, adapters):
            told |= run(llm, [request])
    yield found
    llm.close()


@pytest.fixture(scope="module")
def neighbour(tiny_model):
    """Another shard, which has computed what it is asked for, and from which blocks come or do not."""
    llm = load(tiny_model, "llama3")
    yield llm
    llm.close()


@pytest.fixture(scope="module", params=COLUMNS)
def column(request, tiny_model, model, tmp_path_factory, neighbour, neighbours):
    name = request.param
    if name == "peer" and model != "llama3":
        pytest.skip("blocks that are shared have all layers (`share_kv_cache`)")
    llm = load(tiny_model, model, **COLUMNS[name], disk_cache_path=str(tmp_path_factory.mktemp("kv")))
    if name == "peer":
        llm.engine.share(neighbours(other=neighbour.engine))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrivals, "compute_seconds", lambda *_: float("inf"))  # so little is computed at once
        yield name, llm
    counters = llm.engine.scheduler.counters
    assert (name in ("preemption", "all", "peer", *TIERS)) == (counters.preemptions > 0)
    assert (name in TIERS) == (llm.engine.stats().tier.came > 20)
    assert (name == "peer") == (llm.engine.stats().peers.came > 20)
    assert sum(counters.accepted) > 5
    llm.close()


def requests(row, adapters, emitted=None):
    """A request per prompt; with what another shard had emitted of each sequence."""
    params = {"max_tokens": 24, "ignore_eos": "grammar" not in row}
    params |= {} if "grammar" in row and "guesses" in row else {"logprobs": 0}  # nothing is guessed of both
    params |= {"grammar": GRAMMAR} if "grammar" in row else {}
    params |= {"n": 3} if "n" in row.split() else {}
    params |= {"n": 2, "beams": BeamSearch(3)} if "beam" in row else {}
    adapter = {"adapter": [*adapters[:2], None, adapters[0]], "late": [adapters[2]] * 3 + [None]}
    chosen = next((each for word, each in adapter.items() if word in row), [None] * 4)
    there = Placement("", "here", "fetch", 0, 0.0, "other", 100)
    return [
        Request(
            request_id=f"{i}", placement=there, prompt_token_ids=prompt, params=SamplingParams(seed=i, **params),
            adapter=chosen[i], tenant=str(i % 2), emitted=None if emitted is None else emitted[f"{i}"],
        )
        for i, prompt in enumerate(PROMPTS)
    ]  # fmt: skip


def run(llm, asked, proposer=None):
    """Tokens, their log probabilities and the finish reason by request and sequence."""
    told = {}
    llm.engine.scheduler.proposer = proposer
    for request in asked:
        llm.engine.add(request)
    while llm.engine.has_work:
        for update in llm.engine.step():
            tokens, logprobs, _ = told.get((update.request_id, update.index), ([], [], None))
            tokens, logprobs = tokens + update.token_ids, logprobs + values(update)
            told[update.request_id, update.index] = tokens, logprobs, update.finish_reason
        llm.engine.check_integrity()
    assert llm.engine.pool.num_owned == 0
    return told


def values(update):
    """The log probability of each token of an update."""
    if update.logprobs is None:
        return []
    return [told[token].logprob for token, told in zip(update.token_ids, update.logprobs, strict=True)]


class Guesser:
    """Proposes what the plain path said, with mistakes."""

    def __init__(self, plain):
        self.plain, self.random = plain, random.Random(0)

    def begin(self, running, room):
        return True

    def follows(self, seq):
        return True

    def verified(self, seq, right, proposed):
        return "text"

    def took(self, work, proposed, seconds):
        pass

    def checked(self, seq, kept, proposed, seconds):
        pass

    def check_integrity(self):
        pass

    def ended(self, seq):
        pass

    def close(self):
        pass

    def propose(self, seq, most):
        said = self.plain[seq.group.request.request_id, seq.index][0][seq.num_output :][:4]
        return [token if self.random.random() < 0.8 else 3 for token in said]


@pytest.mark.parametrize("row", ROWS)
def test_it_is_as_the_plain_path_has_it(column, plain, adapters, neighbour, row):
    if row not in plain:
        pytest.skip("tried with another model")
    (name, llm), expected = column, plain[row]
    moved = name in ("failover", "all") and "beam" not in row  # a search tells nothing before its end
    before = {key: len(tokens) // 2 if moved else 0 for key, (tokens, _, _) in expected.items()}
    emitted = {}
    for key, (tokens, _, _) in sorted(expected.items()):
        emitted.setdefault(key[0], []).append(tokens[: before[key]])
    if name == "peer":
        assert run(neighbour, requests(row, adapters)).keys() == expected.keys()
    for _ in range(2):  # the second time much of it is cached
        asked = requests(row, adapters, emitted if moved else None)
        found = run(llm, asked, Guesser(expected) if "guesses" in row else None)
        assert found.keys() == expected.keys()
        for key, (tokens, logprobs, finish) in expected.items():
            assert (found[key][0], found[key][2]) == (tokens[before[key] :], finish), key
            assert found[key][1] == pytest.approx(logprobs[before[key] :], rel=1e-6, abs=1e-5), key
