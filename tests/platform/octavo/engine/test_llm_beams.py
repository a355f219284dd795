"""`LLM.beam_search` beside everything else that a request may ask for."""

import dataclasses

import pytest

from octavo import LLM, BeamSearch, BeamSearchParams, SamplingParams
from octavo.constraint import StructuredOutputs
from octavo.engine.llm import LoRARequest
from octavo.errors import BadRequest, OctavoError


def test_the_offline_call_is_vllms(tiny_llm):
    found = tiny_llm.beam_search(["abc", [1, 2, 3]], BeamSearchParams(beam_width=3, max_tokens=6, logprobs=2))
    for output in found:
        assert len(output.sequences) == 3
        scores = [each.score for each in output.sequences]
        assert scores == sorted(scores, reverse=True)
        for each in output.sequences:
            assert each.cum_logprob == pytest.approx(
                sum(entry[token].logprob for entry, token in zip(each.logprobs, each.output.token_ids, strict=True)),
                abs=1e-4,
            )
            assert each.score == pytest.approx(each.cum_logprob / len(each.output.token_ids))
    assert found[0].sequences[0].tokens[:3] == tiny_llm.tokenizer.encode("abc")
    assert found[0].sequences[0].text.startswith("abc")


def test_log_probabilities_are_those_of_the_text_alone(tiny_llm):
    found = tiny_llm.beam_search(["abc"], BeamSearchParams(beam_width=3, max_tokens=5, logprobs=1))[0].sequences[1]
    ids = found.tokens
    plain = tiny_llm.generate([ids], SamplingParams(max_tokens=0, prompt_logprobs=1), use_tqdm=False)[
        0
    ].prompt_logprobs[3:]
    for token, mine, entry in zip(ids[3:], found.logprobs, plain, strict=True):
        assert mine[token].logprob == pytest.approx(entry[token].logprob, abs=1e-5)
        assert mine[token].rank == entry[token].rank
        assert {place: each for place, each in mine.items() if each.rank == 1}.keys() <= entry.keys()


def test_a_grammar_leaves_its_texts_alone(tiny_llm):
    choice = StructuredOutputs(choice=["yes", "no", "maybe"])
    params = BeamSearchParams(beam_width=3, max_tokens=8, structured_outputs=choice)
    texts = [each.output.text for each in tiny_llm.beam_search(["abc"], params)[0].sequences]
    assert sorted(texts) == ["maybe", "no", "yes"]
    with pytest.raises(OctavoError, match="leave 3 different answers, and n is 4"):
        tiny_llm.beam_search(["abc"], dataclasses.replace(params, beam_width=4))


def test_an_adapter_changes_the_texts_as_it_does_without_beams(make_adapter):
    adapter = make_adapter("smollm2", seed=3)
    llm = LLM(str(adapter.base), dtype="float32", kv_cache_bytes=2**22, progress=False)
    lora = LoRARequest("a", 1, str(adapter))
    params = BeamSearchParams(beam_width=3, max_tokens=6, logprobs=0)
    plain, adapted = llm.beam_search(["abc", "abc"], params, [None, lora])
    assert plain.sequences[0].cum_logprob != adapted.sequences[0].cum_logprob
    ids = adapted.sequences[0].tokens
    again = llm.generate([ids], SamplingParams(max_tokens=0, prompt_logprobs=0), lora_request=lora, use_tqdm=False)
    total = sum(entry[token].logprob for entry, token in zip(again[0].prompt_logprobs[3:], ids[3:], strict=True))
    assert adapted.sequences[0].cum_logprob == pytest.approx(total, abs=1e-4)
    llm.close()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"beams": BeamSearch(9)}, "beam_width is 9, and this engine runs 8 sequences at once"),
        ({"beams": BeamSearch(2), "n": 3}, "2 beams end in so many texts at most"),
        ({"beams": BeamSearch(2), "temperature": 0.7}, "leave temperature out"),
        ({"beams": BeamSearch(2), "top_p": 0.9}, "leave top_p out"),
        ({"beams": BeamSearch(2), "best_of": 2}, "leave best_of out"),
        ({"beams": BeamSearch(2), "max_tokens": 0}, "leaves nothing to search"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_llm, given, sentence):
    with pytest.raises(BadRequest, match=sentence):
        tiny_llm.generate([[1]], SamplingParams(**given), use_tqdm=False)
