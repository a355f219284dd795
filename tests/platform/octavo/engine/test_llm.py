import json
import re
import shutil

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest, ConfigError, ModelError


@pytest.fixture(scope="module")
def llm(tiny_model):
    llm = LLM(str(tiny_model("llama3")), dtype="float32", kv_cache_bytes=2**24, max_num_seqs=16, progress=False)
    yield llm
    llm.close()


def test_every_family_is_greedy_like_transformers(tiny_model, tiny_name):
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tiny_name)
    llm = LLM(str(folder), dtype="float32", kv_cache_bytes=2**23, max_num_batched_tokens=16, progress=False)
    prompts = [[5, 9, 200], list(range(30)), [7] * 17, list(range(100, 140))]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), use_tqdm=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for output in outputs:
        said = output.outputs[0].token_ids
        with torch.inference_mode():
            logits = model(torch.tensor([output.prompt_token_ids + said[:-1]])).logits[0]
        assert said == logits[len(output.prompt_token_ids) - 1 :].argmax(-1).tolist()


def test_results_come_in_order_with_times_and_reasons(llm):
    params = [SamplingParams(temperature=0, max_tokens=m, min_tokens=m, ignore_eos=True) for m in (9, 1, 4)]
    outputs = llm.generate(["one", [3, 4, 5], {"prompt_token_ids": [6]}], params, use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [9, 1, 4]
    assert [o.prompt for o in outputs] == ["one", None, None]
    assert [o.prompt_token_ids for o in outputs[1:]] == [[3, 4, 5], [6]]
    for o in outputs:
        assert o.finished
        assert o.outputs[0].finish_reason == "length"
        assert o.metrics.arrival_time <= o.metrics.first_token_time <= o.metrics.finished_time


def test_one_prompt_needs_no_list(llm):
    params = SamplingParams(temperature=0, max_tokens=3)
    assert len(llm.generate("hi", params, use_tqdm=False)) == 1
    assert len(llm.generate([5, 6, 7], params, use_tqdm=False)) == 1
    assert llm.generate([], params, use_tqdm=False) == []


def test_without_parameters_the_models_recommended_ones_count(tiny_model, tmp_path, llm):
    folder = shutil.copytree(tiny_model("llama3"), tmp_path / "model")
    recommended = {"temperature": 0.0, "top_k": 7, "repetition_penalty": 1.2}
    (folder / "generation_config.json").write_text(json.dumps(recommended))
    other = LLM(str(folder), dtype="float32", kv_cache_bytes=2**22, progress=False)
    try:
        assert other.get_default_sampling_params() == SamplingParams(**recommended)
        said = [model.generate("Once upon", params, use_tqdm=False)[0].outputs[0].token_ids
                for model, params in ((other, None), (llm, SamplingParams(**recommended)))]  # fmt: skip
        assert said[0] == said[1]
    finally:
        other.close()
    assert llm.get_default_sampling_params() == SamplingParams()


def test_n_may_be_more_than_run_at_once(llm):
    params = SamplingParams(n=40, seed=1, max_tokens=6, ignore_eos=True)
    few = [llm.generate("Once upon", SamplingParams(n=n, seed=1, max_tokens=6, ignore_eos=True))[0] for n in (1, 9)]
    many = llm.generate("Once upon", params, use_tqdm=False)[0]
    said = [line.token_ids for line in many.outputs]
    assert len(said) == 40
    assert [[line.token_ids for line in output.outputs] for output in few] == [said[:1], said[:9]]


def test_n_differ_and_best_of_returns_the_likeliest(llm):
    params = {"temperature": 1.0, "seed": 3, "max_tokens": 8, "ignore_eos": True, "logprobs": 0}
    many = llm.generate("once", SamplingParams(n=6, **params), use_tqdm=False)[0].outputs
    assert len({tuple(o.token_ids) for o in many}) > 1
    best = llm.generate("once", SamplingParams(n=2, best_of=6, **params), use_tqdm=False)[0].outputs
    ranked = sorted(many, key=lambda o: -o.cumulative_logprob)
    assert [o.token_ids for o in best] == [o.token_ids for o in ranked[:2]]
    assert [o.index for o in best] == [0, 1]


def test_stop_strings_end_the_text_and_free_the_blocks(llm):
    free = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, skip_special_tokens=False)
    whole = llm.generate("go", free, use_tqdm=False)[0].outputs[0]
    stop = whole.text[10:12]
    cut = llm.generate(
        "go", SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=stop, skip_special_tokens=False),
        use_tqdm=False,
    )[0].outputs[0]  # fmt: skip
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
    assert llm.engine.pool.num_owned == 0


def test_logprobs_are_transformers(llm, tiny_model):
    from transformers import AutoModelForCausalLM

    params = SamplingParams(temperature=0.7, seed=1, max_tokens=6, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    output = llm.generate([list(range(20, 60))], params, use_tqdm=False)[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama3"), dtype=torch.float32).eval()
    line = output.prompt_token_ids + output.outputs[0].token_ids
    with torch.inference_mode():
        reference = model(torch.tensor([line])).logits[0].log_softmax(-1)
    entries = output.prompt_logprobs[1:] + output.outputs[0].logprobs
    assert output.prompt_logprobs[0] is None
    assert len(entries) == len(line) - 1
    for position, entry in enumerate(entries):
        for token, value in entry.items():
            assert value.logprob == pytest.approx(reference[position, token].item(), abs=1e-4)
        assert line[position + 1] in entry


def test_chat_renders_the_template(llm):
    params = SamplingParams(temperature=0, max_tokens=4)
    said = llm.chat([{"role": "user", "content": "hi"}], params, use_tqdm=False)[0]
    assert llm.tokenizer.decode(said.prompt_token_ids, skip_special_tokens=False) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(llm.chat([[{"role": "user", "content": x}] for x in "ab"], params, use_tqdm=False)) == 2
    for nothing in ([], [[]], [[{"role": "user", "content": "a"}], []]):
        with pytest.raises(BadRequest, match="messages must be a list of at least one message"):
            llm.chat(nothing, params, use_tqdm=False)


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([[]], {}, "empty"), ([[1, 2, 300]], {}, "token ids must be in"), ([["a"]], {}, "must be a string or a list"),
        ([[1] * 600], {}, "context is"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_runs(llm, prompts, params, message):
    steps = llm.engine.stats().steps
    with pytest.raises(BadRequest, match=message):
        llm.generate(prompts, SamplingParams(**params), use_tqdm=False)
    assert llm.engine.stats().steps == steps
    with pytest.raises(BadRequest, match="2 entries for 1 prompts"):
        llm.generate(["x"], [SamplingParams()] * 2, use_tqdm=False)


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_what_is_written_keeps_to_its_form(llm, chat):
    forms = [{"regex": "[a-c]{3}-[0-9]"}, {"choice": ["yes", "no"]}, {"grammar": 'root ::= "x" [0-9] [0-9] "!"'}]
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    params = [
        SamplingParams(max_tokens=60, seed=i, structured_outputs=StructuredOutputs(**form))
        for i, form in enumerate([*forms, {"json": schema}])
    ]
    asked = [[{"role": "user", "content": "Hi"}]] * 4 if chat else ["Hi"] * 4
    outputs = (llm.chat if chat else llm.generate)(asked, params, use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    assert re.fullmatch("[a-c]{3}-[0-9]", texts[0])
    assert texts[1] in ("yes", "no")
    assert re.fullmatch("x[0-9]{2}!", texts[2])
    assert json.loads(texts[3])["n"] in (1, 22)
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    assert params[0].grammar is None  # it is the caller's


def test_a_stop_string_may_end_a_text_before_the_last_update_of_a_step(llm):
    wanted = StructuredOutputs(regex="[ab] then a constant [xyz]{9}")
    params = [SamplingParams(structured_outputs=wanted, stop="then", max_tokens=40, logprobs=k) for k in (0, None)]
    scored, plain = (output.outputs[0] for output in llm.generate(["x", "x"], params, use_tqdm=False))
    assert scored.text in ("a ", "b ")
    assert (scored.finish_reason, scored.stop_reason) == ("stop", "then")
    assert len(scored.logprobs) == len(scored.token_ids)
    assert plain.text in ("a ", "b ")
    assert len(plain.token_ids) == len(scored.token_ids)


def test_a_queue_shorter_than_the_batch_is_fed_as_it_empties(tiny_model):
    llm = LLM(
        str(tiny_model("qwen3")), dtype="float32", kv_cache_bytes=2**22, max_num_queued_requests=2, progress=False
    )
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    assert len(llm.generate([[i + 1] for i in range(20)], params, use_tqdm=False)) == 20


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_num_sequences": 3}, ConfigError, "did you mean 'max_num_seqs'"),
        ({"max_model_len": 10_000}, ConfigError, "holds at most 512"),
        ({"max_model_len": 512, "kv_cache_bytes": 2**16}, ConfigError, "raise kv_cache_bytes"),
        ({"kv_cache_bytes": 1}, ModelError, "one block of 16 tokens"),
        ({"kv_cache_bytes": 2**50, "device": "cpu"}, ModelError, "lower kv_cache_bytes"),
        ({"quantization": "magic"}, ConfigError, "magic"),
    ],
)
def test_wrong_settings_say_what_to_change(tiny_model, settings, error, message):
    with pytest.raises(error, match=message):
        LLM(str(tiny_model("llama3")), progress=False, **settings)


def test_the_context_shrinks_to_the_pool_when_it_is_not_given(tiny_model):
    llm = LLM(str(tiny_model("llama3")), kv_cache_bytes=2**16, progress=False)
    assert llm.engine.limits.max_model_len == llm.engine.pool.num_blocks * 16 < 512
    assert json.dumps(repr(llm)).count("llama") >= 1
