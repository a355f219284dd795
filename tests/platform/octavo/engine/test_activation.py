"""Adapters that begin inside of a prompt: PEFT's tokens, and the model's own blocks before."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from octavo import LLM, LoRARequest, SamplingParams

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers

INVOCATION = [7, 8, 9]
TEXT = list(range(20, 60))
PROMPTS = {
    "inside": [*TEXT, *INVOCATION, 3],
    "last of two": [*TEXT[:5], *INVOCATION, *TEXT, *INVOCATION],
    "first": [*INVOCATION, *TEXT],
    "on a block's edge": [*TEXT[:32], *INVOCATION, *TEXT],
    "never": [*TEXT, *INVOCATION[:2]],
}
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=0)


@pytest.fixture(scope="module")
def activated(tiny_model, tmp_path_factory):
    """PEFT's model with a random adapter that begins late, and two adapters of that kind."""
    folders = [tmp_path_factory.mktemp("activated") for _ in range(2)]
    for seed, folder in enumerate(folders):
        base = AutoModelForCausalLM.from_pretrained(tiny_model("llama3"), dtype=torch.float32)
        peft = get_peft_model(base, LoraConfig(
            r=4, lora_alpha=12, task_type="CAUSAL_LM", alora_invocation_tokens=INVOCATION,
            target_modules=["q_proj", "k_proj", "v_proj", "down_proj"],
        )).eval()  # fmt: skip
        random = torch.Generator().manual_seed(seed)
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.data.copy_(torch.randn(weight.shape, generator=random) * 0.2)
        peft.save_pretrained(folder, save_embedding_layers=False)
    return peft, folders[::-1]


@pytest.fixture(scope="module")
def loras(activated):
    return [LoRARequest(f"late{i}", i, str(folder)) for i, folder in enumerate(activated[1])]


@pytest.fixture(scope="module")
def expected(activated):
    """PEFT's greedy tokens, and the log probability of each."""
    found = []
    for prompt in PROMPTS.values():
        out = activated[0].generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        tokens = out.sequences[0, len(prompt) :]
        logprobs = torch.stack(out.logits)[:, 0].log_softmax(-1)
        found.append((tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist()))
    return found


def load(tiny_model, **settings):
    settings = {"kv_cache_bytes": 2**22, "max_model_len": 128} | settings
    return LLM(str(tiny_model("llama3")), progress=False, **settings)


def run(llm, prompts, loras, params=GREEDY):
    return llm.generate(list(prompts), params, use_tqdm=False, lora_request=loras)


@pytest.mark.parametrize(
    "settings",
    [
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 16},
        {"kv_cache_bytes": 9 * 16 * 3 * 2 * 2 * 16 * 4, "max_model_len": 96},  # nine blocks: they preempt each other
        {"async_scheduling": True},
        {"block_size": 10},  # which the torch runner alone takes
    ],
    ids=["whole", "chunks", "preemption", "ahead", "torch"],
)
def test_tokens_and_their_probabilities_are_those_of_peft(tiny_model, loras, expected, settings):
    llm = load(tiny_model, **settings)
    for _ in range(2):  # the second time much of it is cached
        for output, (tokens, logprobs) in zip(run(llm, PROMPTS.values(), loras[0]), expected, strict=True):
            assert output.outputs[0].token_ids == tokens
            ours = [each[token].logprob for each, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
            assert ours == pytest.approx(logprobs, abs=1e-4)
    assert (llm.engine.scheduler.counters.preemptions > 0) == ("max_model_len" in settings)
    llm.close()


def test_log_probabilities_of_a_prompt_are_those_of_peft(tiny_model, activated, loras):
    """On both sides of the place where it begins."""
    prompt, llm = PROMPTS["inside"], load(tiny_model, max_num_batched_tokens=16)
    (output,) = run(llm, [prompt], loras[0], SamplingParams(max_tokens=1, prompt_logprobs=0))
    logprobs = activated[0](torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    ours = [each[token].logprob for each, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)]
    assert ours == pytest.approx(logprobs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist(), abs=1e-4)
    llm.close()


def test_blocks_before_are_the_models_own(tiny_model, loras, expected):
    """Whoever computed them: the model, either adapter; those after are an adapter's alone."""
    llm = load(tiny_model)
    prompt = [*range(100, 150), *INVOCATION, *TEXT]  # three blocks and a part before it begins

    def cached(lora, ids=prompt):
        return run(llm, [ids], lora)[0].num_cached_tokens

    assert [cached(lora) for lora in (None, *loras)] == [0, 48, 48]
    assert [cached(lora) for lora in (*loras, None)] == [80, 80, 80]
    again = [*prompt, *INVOCATION]  # begins later: all of the model's own blocks are of use now
    assert [cached(lora, again) for lora in loras] == [80, 80]
    assert [each.outputs[0].token_ids for each in run(llm, PROMPTS.values(), loras[0])] == [ids for ids, _ in expected]
    never = PROMPTS["never"]
    assert cached(loras[1], never) == 32  # the same tokens as with the other, which is as with none
    assert run(llm, [never], loras[1])[0].outputs[0].token_ids == expected[-1][0]
    llm.close()


def test_a_request_that_invokes_nothing_loads_nothing(tiny_model, loras):
    llm = load(tiny_model)
    run(llm, [PROMPTS["never"]], loras[0])
    assert llm.engine.executor._adapters == {}
    run(llm, [PROMPTS["inside"]], loras[0])
    assert len(llm.engine.executor._adapters) == 1
    llm.close()
