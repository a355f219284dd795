"""Beam search is transformers', to the token and the score, and the same however it is scheduled."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from octavo import LLM, BeamSearch, SamplingParams
from octavo.engine import beam
from octavo_kernels.native.library import library, use

END, UNUSED = 258, 299  # of the tiny models

SETTINGS = st.fixed_dictionaries({
    "width": st.sampled_from([2, 3, 5]),
    "length_penalty": st.sampled_from([-1.0, 0.0, 0.7, 1.0, 2.0]),
    "early_stopping": st.sampled_from([True, False, "never"]),
    "max_tokens": st.integers(1, 12),
    "min_tokens": st.sampled_from([0, 0, 3]),
    "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3]),
    "stop_token_ids": st.lists(st.integers(0, 255), max_size=12, unique=True),
    "prompt": st.lists(st.integers(0, 255), min_size=1, max_size=20),
    "share": st.sampled_from([0.3, 1.0]),
})  # fmt: skip


@pytest.fixture(scope="module", params=["native, mistral", "torch, llama3"])
def both(request, tiny_model):
    """A model with us and with transformers."""
    from transformers import AutoModelForCausalLM

    runner, name = request.param.split(", ")
    with use(None if runner == "torch" else library()):
        llm = LLM(str(tiny_model(name)), dtype="float32", kv_cache_bytes=2**22, max_num_seqs=8, progress=False,
                  max_num_batched_tokens=16)  # fmt: skip
    yield llm, AutoModelForCausalLM.from_pretrained(tiny_model(name), dtype=torch.float32).eval()
    llm.close()


def transformers_says(model, prompt, params) -> list[tuple[list[int], float]]:
    """(tokens, score) of each text; what follows the end is UNUSED."""
    beams = params.beams
    said = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=beams.width,
        num_return_sequences=params.n,
        length_penalty=beams.length_penalty,
        early_stopping=beams.early_stopping,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens,
        repetition_penalty=params.repetition_penalty,
        eos_token_id=[END, *params.stop_token_ids],
        pad_token_id=UNUSED,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    return list(zip(said.sequences[:, len(prompt) :].tolist(), said.sequences_scores.tolist(), strict=True))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=SETTINGS)
def test_tokens_and_scores_are_transformers(both, given):
    llm, model = both
    prompt, share, width = given.pop("prompt"), given.pop("share"), given.pop("width")
    beams = BeamSearch(width, given.pop("length_penalty"), given.pop("early_stopping"))
    assume(given["min_tokens"] <= given["max_tokens"])
    params = SamplingParams(beams=beams, n=max(1, int(share * width)), **given)
    texts = llm.generate([prompt], params, use_tqdm=False)[0].outputs
    expected = transformers_says(model, prompt, params)
    longest = max(len(text.token_ids) for text in texts)
    padded = [text.token_ids + [UNUSED] * (longest - len(text.token_ids)) for text in texts]
    assert padded == [ids for ids, _ in expected]
    scores = [beams.score(text.cumulative_logprob, len(text.token_ids)) for text in texts]
    assert scores == pytest.approx([score for _, score in expected], rel=1e-5, abs=1e-4)


# ---- however it is scheduled ----------------------------------------------------------------------------------------


def request_of(fake, **params):
    """A search that goes on for 14 tokens, some texts ending before."""
    beams = {"beams": BeamSearch(4, 1.0, "never"), "n": 4, "stop_token_ids": [*range(0, 1000, 50)]}
    return fake.request("beams", [1, 2, 3, 4, 5, 6, 7], **{**beams, "max_tokens": 14, **params})


def search(fake, engine, others=(), **params):
    """Texts and sums of a search beside other requests, whose tokens it checks."""
    engine.add(request_of(fake, **params))
    for name, prompt, count in others:
        engine.add(fake.request(name, prompt, max_tokens=count))
    texts, said = {}, {}
    while engine.has_work:
        for update in engine.step():
            if update.request_id == "beams":
                assert update.finish_reason is not None
                texts[update.index] = update
            else:
                said.setdefault(update.request_id, []).extend(update.token_ids)
        engine.scheduler.check_integrity()
    for name, prompt, count in others:
        assert said[name] == fake.expected(prompt, count)
    return [(texts[i].token_ids, texts[i].cumulative_logprob, texts[i].finish_reason) for i in sorted(texts)]


OTHERS = [(f"other {i}", [20 + i] * (3 + 5 * i), 10 + i) for i in range(5)]


@pytest.fixture
def undisturbed(fake):
    return search(fake, fake.engine(256))


@pytest.mark.parametrize(
    "given",
    [
        {"num_blocks": 256, "max_num_batched_tokens": 5},
        {"num_blocks": 256, "enable_prefix_caching": False},
        {"num_blocks": 256, "async_scheduling": True},
        {"num_blocks": 24},
        {"num_blocks": 24, "async_scheduling": True, "max_num_batched_tokens": 7},
        {"num_blocks": 256, "speculation": True},
    ],
)
@pytest.mark.parametrize("others", [[], OTHERS])
def test_the_same_texts_in_any_engine(fake, undisturbed, given, others):
    engine = fake.engine(**given)
    assert search(fake, engine, others) == undisturbed
    if others and given["num_blocks"] == 24:
        assert engine.scheduler.counters.preemptions > 0


def test_a_search_that_is_preempted_waits_for_more_blocks_than_it_had(fake, undisturbed):
    engine = fake.engine(14)
    engine.add(fake.request("first", [9] * 12, max_tokens=30, priority=-1))
    found = search(fake, engine)
    assert found == undisturbed
    kinds = [each.kind for each in engine.scheduler.decisions.of("beams")]
    assert 0 < kinds.count("preempt") < 5


def test_one_that_is_too_wide_for_the_pool_ends_with_a_sentence(fake):
    engine = fake.engine(8, max_model_len=32)
    engine.add(fake.request("wide", [1, 2, 3], beams=BeamSearch(8), n=2, max_tokens=25))
    updates = [update for _ in range(200) for update in engine.step()]
    assert not engine.has_work
    assert [(update.index, update.finish_reason) for update in updates] == [(0, "refused"), (1, "refused")]
    assert "lower beam_width or max_tokens, or raise kv_cache_bytes" in updates[0].stop_reason
    engine.check_integrity()


def test_it_takes_as_many_places_as_it_has_beams(fake):
    engine = fake.engine(256, max_num_seqs=6)
    search(fake, engine, OTHERS)
    rows = [len(batch.sampling.token_index) for batch in fake.model(engine).batches]
    assert max(rows) == 6  # four beams and two others


def test_the_prompts_blocks_are_held_once(fake):
    engine = fake.engine(256)
    engine.add(fake.request("long", [3] * 200, beams=BeamSearch(8), max_tokens=8))
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.pool.num_owned)
    assert most <= 50 + 8 * 3


def test_what_goes_on_elsewhere_ends_alike(fake, undisturbed):
    engine = fake.engine(256)
    request = request_of(fake)
    engine.add(dataclasses.replace(request, emitted=[None, [], None, []]))
    updates = [update for _ in range(40) for update in engine.step()]
    assert {update.index: update.token_ids for update in updates} == {1: undisturbed[1][0], 3: undisturbed[3][0]}


def test_a_text_that_was_told_in_part_is_told_to_its_end(fake, undisturbed, monkeypatch):
    monkeypatch.setattr(beam, "PART_VALUES", 3)
    whole, rest = fake.engine(256), fake.engine(256)
    request = request_of(fake, logprobs=0)
    told = everything(whole, request)
    assert [len(update.token_ids) for update in told if update.index == 0] == [3, 3, 3, 3, 2]
    first = told[:2]
    assert [(update.index, update.cumulative_logprob, update.finish_reason) for update in first] == [(0, 0.0, None)] * 2
    emitted = [first[0].token_ids + first[1].token_ids, [], [], []]
    assert everything(rest, dataclasses.replace(request, emitted=emitted)) == told[2:]
    emitted[0][0] += 1
    others = everything(rest, dataclasses.replace(request, emitted=emitted))
    assert [update.finish_reason for update in others] == ["error"] * 4


def everything(engine, request):
    """All updates of a request, with no times in them."""
    engine.add(request)
    updates = []
    while engine.has_work:
        updates += engine.step()
    return [dataclasses.replace(update, time=0.0, prefill=None, num_cached_tokens=0) for update in updates]


@pytest.mark.parametrize("settings", [{}, {"async_scheduling": True}])
def test_a_step_that_raises_for_another_changes_no_text(fake, undisturbed, settings):
    engine = fake.engine(256, **settings)
    model = fake.model(engine)
    launch, raised = model.launch, []

    def raising(batch):
        if 666 in batch.token_ids:
            raised.append(batch)
            raise RuntimeError("poison")
        return launch(batch)

    model.launch = raising
    engine.add(request_of(fake))
    for _ in range(4):
        assert engine.step() == []
    engine.add(fake.request("poison", [1, 666, 3], max_tokens=5))
    updates = [update for _ in range(80) for update in engine.step()]
    told = [(each.token_ids, each.cumulative_logprob, each.finish_reason) for each in updates if each.token_ids]
    assert told == undisturbed
    assert raised[0].num_seqs == 5
    assert [each.finish_reason for each in updates if each.request_id == "poison" and each.finish_reason] == ["error"]


def test_an_abort_ends_all_of_it(fake):
    engine = fake.engine(64)
    for steps in (0, 1, 4):
        engine.add(fake.request("gone", [1, 2, 3], beams=BeamSearch(4), n=3, max_tokens=20))
        for _ in range(steps):
            engine.step()
        assert [(update.index, update.finish_reason) for update in engine.abort("gone")] == [
            (0, "abort"),
            (1, "abort"),
            (2, "abort"),
        ]
        assert not engine.has_work
        assert engine.scheduler.num_places() == 8
        engine.check_integrity()


def test_values_that_are_not_finite_fail_the_request_alone(fake):
    engine = fake.engine(64)
    fake.model(engine).fail_tokens = {7}
    ((tokens, _, reason),) = search(fake, engine, OTHERS[:1], n=1)
    assert (tokens, reason) == ([], "error")
