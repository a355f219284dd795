"""Stop strings end beams as the tokens that write them would."""

import dataclasses

import pytest

from octavo import BeamSearchParams, SamplingParams
from octavo.engine.beam_stops import WINDOW, StopTexts
from octavo.errors import BadRequest
from octavo.request import SequenceUpdate
from octavo.text.output import SequenceText


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


@pytest.mark.parametrize("stop", [["über", "Bord"], ["x", "xxxxü"], ["üb", "ü"], ["nowhere"]])
@pytest.mark.parametrize("min_tokens", [0, 4])
def test_they_are_found_where_the_text_layer_finds_them(tiny_llm, stop, min_tokens):
    params = SamplingParams(stop=stop, min_tokens=min_tokens)
    ids = tiny_llm.tokenizer.encode("x" * 9 + "über Bord" * 5)
    stops, text, end = StopTexts.of(params, tiny_llm.tokenizer, [1]), SequenceText(tiny_llm.tokenizer, params), ""
    for count in range(1, len(ids) + 1):
        end, found = stops.push(end, ids[max(0, count - WINDOW) : count], count)
        text.push(SequenceUpdate("a", 0, ids[count - 1 : count]))
        assert found == text.stop_reason
        assert len(end) <= max(map(len, stop))
        if found is not None:
            break
    assert (found is None) == (stop == ["nowhere"])


def test_nothing_reads_them_without_a_tokenizer():
    assert StopTexts.of(SamplingParams(), None, []) is None
    with pytest.raises(BadRequest, match="needs a tokenizer"):
        StopTexts.of(SamplingParams(stop="x"), None, [])
