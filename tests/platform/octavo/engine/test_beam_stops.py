"""Stop strings end beams as the tokens that write them would."""

import dataclasses

import pytest

from octavo import BeamSearchParams, SamplingParams
from octavo.engine.beam_stops import StopTexts
from octavo.errors import BadRequest


def test_texts_end_with_stop_strings(tiny_llm):
    params = BeamSearchParams(beam_width=3, max_tokens=9, ignore_eos=True, early_stopping="never")
    letters = [letter for each in tiny_llm.beam_search(["abc"], params)[0].sequences for letter in each.output.text[2:]]
    stops = [letter for letter in dict.fromkeys(letters) if letter.isascii() and letter != "\0"][:4]
    found = tiny_llm.beam_search(["abc"], dataclasses.replace(params, stop=stops))[0].sequences
    ids = [tiny_llm.tokenizer.encode(stop)[0] for stop in stops]
    as_tokens = tiny_llm.beam_search(["abc"], dataclasses.replace(params, stop_token_ids=ids))[0].sequences
    assert "stop" in {each.finish_reason for each in found}
    for each, other in zip(found, as_tokens, strict=True):
        assert (each.tokens, each.score, each.output.text) == (other.tokens, other.score, other.output.text)
        assert each.stop_reason in (None, *stops)


def test_one_over_several_tokens_is_found_by_its_last_one_alone(tiny_llm):
    ids = tiny_llm.tokenizer.encode("x" * 100 + "über Bord")
    stops = StopTexts.of(SamplingParams(stop=["über", "Bord"]), tiny_llm.tokenizer, [1])
    assert [stops.found(ids[:end]) for end in range(100, len(ids) + 1)].count("über") == 1
    assert stops.found(ids) == "Bord"
    assert stops.found([*ids, ids[0]]) is None


def test_nothing_reads_them_without_a_tokenizer():
    assert StopTexts.of(SamplingParams(), None, []) is None
    with pytest.raises(BadRequest, match="needs a tokenizer"):
        StopTexts.of(SamplingParams(stop="x"), None, [])
