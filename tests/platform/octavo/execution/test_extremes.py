"""Whatever parameters are valid, a step with them ends, on the native runner and on the torch one."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from octavo import LLM, SamplingParams
from octavo.engine.engine import Engine
from octavo.errors import BadRequest
from octavo.request import MAX_LOGPROBS, Request
from octavo_kernels.native.library import library, use

VOCAB = 300  # of the tiny models
SMALL = [5e-324, 1e-46, 1e-45, 1e-38, 1.1754944e-38, 1e-30, 1e-7]
TOKEN = st.sampled_from([0, 1, VOCAB - 2, VOCAB - 1]) | st.integers(0, VOCAB - 1)


def number(low: float, high: float, *special: float):
    return st.sampled_from([low, high, *special]) | st.floats(low, high)


PARAMS = st.fixed_dictionaries({}, optional={
    "n": st.sampled_from([1, 2, 9]),
    "temperature": number(0, 100, *SMALL),
    "top_k": st.sampled_from([-1, 0, 1, VOCAB - 1, VOCAB, VOCAB + 1, 2**31, 2**63 - 1]),
    "top_p": number(0, 1, 1 - 2**-53, *SMALL),
    "min_p": number(0, 1, 1 - 2**-53, *SMALL),
    "presence_penalty": number(-2, 2, *SMALL),
    "frequency_penalty": number(-2, 2, *SMALL),
    "repetition_penalty": st.sampled_from([100, 1, 3.4e-38, *SMALL]) | st.floats(1e-3, 100),
    "logit_bias": st.dictionaries(TOKEN, number(-100, 100, *SMALL), max_size=VOCAB),
    "seed": st.sampled_from([-1, 0, -(2**63), 2**63, 2**64 - 1]) | st.integers(-(2**63), 2**64 - 1),
    "stop_token_ids": st.lists(TOKEN, max_size=9) | st.just([*range(1, VOCAB)]) | st.just([*range(VOCAB)]),
    "ignore_eos": st.booleans(),
    "min_tokens": st.sampled_from([0, 1, 3]),
    "max_tokens": st.integers(3, 4),
    "logprobs": st.none() | st.integers(0, MAX_LOGPROBS),
    "logprob_token_ids": st.none() | st.lists(TOKEN, max_size=9),
    "prompt_logprobs": st.none() | st.integers(0, MAX_LOGPROBS),
})  # fmt: skip


@pytest.fixture(scope="module", params=["native", "torch", "native, ahead"])
def llm(request, tiny_model):
    with use(None if request.param == "torch" else library()):
        llm = LLM(str(tiny_model("llama3")), kv_cache_bytes=2**22, max_num_seqs=6, max_num_batched_tokens=64,
                  async_scheduling="ahead" in request.param, progress=False)  # fmt: skip
        yield llm
        llm.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(params=st.lists(PARAMS, min_size=1, max_size=4))
@example(params=[{"repetition_penalty": 1e-38, "temperature": 1.0}, {"repetition_penalty": 1e-46, "seed": 1}])
@example(params=[{"min_tokens": 3, "stop_token_ids": [*range(VOCAB)]}, {}])
@example(params=[{"min_tokens": 3, "stop_token_ids": [*range(1, VOCAB)], "repetition_penalty": 5e-324}])
@example(params=[{"top_p": 1e-46, "min_p": 1e-46, "temperature": 1e-46}, {"temperature": 1e-45, "logprobs": 20}])
def test_valid_parameters_never_raise_in_a_step(llm, params):
    wanted = [SamplingParams(**{"max_tokens": 3, **given}) for given in params]
    prompts = [[1, 2, 3, VOCAB - 1], [0] * 20, [7], [9] * 40][: len(wanted)]
    kept = [(prompt, one) for prompt, one in zip(prompts, wanted, strict=True) if runs(llm, prompt, one)]
    outputs = llm.generate([prompt for prompt, _ in kept], [one for _, one in kept], use_tqdm=False) if kept else []
    for output, (_, one) in zip(outputs, kept, strict=True):
        assert len(output.outputs) == one.n
        for line in output.outputs:
            assert line.finish_reason in ("stop", "length")
            assert all(0 <= token < llm.engine.limits.vocab_size for token in line.token_ids)


def runs(llm, prompt, params) -> bool:
    """Whether it is taken; what is not, is refused with a sentence."""
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else llm.engine.limits.end_token_ids)}
    if params.min_tokens and len(stops) == VOCAB:
        with pytest.raises(BadRequest, match="nothing to draw"):
            llm._request(prompt, params, 0)
        return False
    return True


def test_an_end_token_beyond_the_vocabulary_does_nothing(tiny_model):
    llm = LLM(str(tiny_model("llama3")), kv_cache_bytes=2**22, progress=False)
    engine = Engine("x", llm.engine.executor, llm.engine.config, [2, -1, VOCAB, 10**6])
    assert engine.limits.end_token_ids == {2}
    engine.add(Request(request_id="a", prompt_token_ids=[1], params=SamplingParams(min_tokens=3, max_tokens=3)))
    while engine.has_work:
        engine.step()
    llm.close()
