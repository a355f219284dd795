from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.request import CompletionOutput, Logprob, SamplingParams, SequenceUpdate
from octavo.text.output import SequenceText, choose_best
from octavo.text.tokenizer import Tokenizer

EOS = 2  # <|im_end|> of the tiny byte-level tokenizer


def update(ids: list[int], finish: str | None = None, stop: int | str | None = None, logprobs: bool = False):
    rows = [{i: Logprob(-float(n + 1), 1), 5: Logprob(-9.0, 2)} for n, i in enumerate(ids)] if logprobs else None
    return SequenceUpdate(
        request_id="r",
        index=0,
        token_ids=ids,
        logprobs=rows,
        cumulative_logprob=-float(sum(range(1, len(ids) + 1))) if logprobs else 0.0,
        finish_reason=finish,
        stop_reason=stop,
    )


def sequence(tokenizer: Tokenizer, **params) -> SequenceText:
    return SequenceText(tokenizer, SamplingParams(**params))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_deltas_make_the_text(byte_level):
    text, ids = "Hello 🙂 world", ids_of(byte_level, "Hello 🙂 world")
    found = sequence(byte_level)
    deltas = [found.push(update([i])) for i in ids] + [found.push(update([], "length"))]
    assert "".join(deltas) == found.text == text
    assert found.token_ids == ids
    assert (found.finish_reason, found.stop_reason, found.stopped) == ("length", None, False)


def test_the_end_token_counts_but_has_no_text(byte_level):
    for skip in (True, False):
        found = sequence(byte_level, skip_special_tokens=skip)
        found.push(update([*ids_of(byte_level, "hi"), EOS], "stop"))
        assert found.text == "hi"
        assert found.token_ids[-1] == EOS
        assert (found.finish_reason, found.stop_reason) == ("stop", None)


def test_a_text_that_a_grammar_ends_keeps_its_last_token(byte_level):
    found = sequence(byte_level)
    found.push(update(ids_of(byte_level, '{"a": 1}'), "stop"))
    assert found.text == '{"a": 1}'


def test_a_stop_token_has_text_only_where_asked_for(byte_level):
    ids = ids_of(byte_level, "hi!")
    for include, text in ((False, "hi"), (True, "hi!")):
        found = sequence(byte_level, stop_token_ids=[ids[-1]], include_stop_str_in_output=include)
        found.push(update(ids, "stop", ids[-1]))
        assert (found.text, found.stop_reason, found.token_ids) == (text, ids[-1], ids)


def test_a_stop_string_ends_the_sequence_at_its_token(byte_level):
    head, tail = ids_of(byte_level, "one STOP"), ids_of(byte_level, "#two")
    found = sequence(byte_level, stop=["STOP"])
    assert found.push(update([*head, *tail])) == "one "
    assert found.stopped
    assert found.token_ids == head
    assert (found.finish_reason, found.stop_reason) == ("stop", "STOP")
    assert found.push(update([7, 8], "abort")) == ""
    assert (found.token_ids, found.finish_reason) == (head, "stop")


def test_a_stop_string_across_updates_is_never_sent_in_part(byte_level):
    found = sequence(byte_level, stop="<end>")
    deltas = [found.push(update([i])) for i in ids_of(byte_level, "a <en b <end> c")]
    assert "".join(deltas) == found.text == "a <en b "
    assert found.stopped


def test_a_stop_string_is_kept_where_asked_for(byte_level):
    found = sequence(byte_level, stop=["STOP"], include_stop_str_in_output=True)
    found.push(update(ids_of(byte_level, "one STOP two")))
    assert found.text == "one STOP"


def test_a_stop_string_beats_the_engines_reason(byte_level):
    found = sequence(byte_level, stop=["STOP"])
    found.push(update(ids_of(byte_level, "STOP me"), "length"))
    assert (found.finish_reason, found.stop_reason) == ("stop", "STOP")


def test_text_held_for_a_stop_string_is_released_at_the_end(byte_level):
    found = sequence(byte_level, stop=["STOP"])
    assert found.push(update(ids_of(byte_level, "a ST"))) == "a "
    assert found.push(update([], "length")) == "ST"
    assert found.finish_reason == "length"


def test_half_a_character_is_shown_at_the_end(byte_level):
    found = sequence(byte_level)
    found.push(update(ids_of(byte_level, "a🙂")[:-1], "length"))
    assert found.text == "a\ufffd"


def test_min_tokens_lets_stop_strings_pass(byte_level):
    ids = ids_of(byte_level, "xSTOPySTOPz")
    first = next(n for n in range(len(ids)) if "STOP" in byte_level.decode(ids[:n]))
    found = sequence(byte_level, stop=["STOP"], min_tokens=first, max_tokens=None)
    found.push(update(ids))
    assert found.text == "xSTOPy"
    found = sequence(byte_level, stop=["STOP"], min_tokens=first - 1, max_tokens=None)
    found.push(update(ids))
    assert found.text == "x"


def test_logprobs_get_their_text_and_end_with_the_tokens(byte_level):
    head, tail = ids_of(byte_level, "one STOP"), ids_of(byte_level, "#two")
    found = sequence(byte_level, stop=["STOP"], logprobs=1)
    found.push(update([*head, *tail], logprobs=True))
    assert found.logprobs is not None
    assert len(found.logprobs) == len(head)
    assert "".join(row[i].decoded_token or "" for i, row in zip(head, found.logprobs, strict=True)) == "one STOP"
    assert all(row[5].decoded_token == byte_level.token_text(5) for row in found.logprobs)
    assert found.cumulative_logprob == pytest.approx(-sum(range(1, len(head) + 1)))


def test_without_logprobs_there_are_none(byte_level):
    found = sequence(byte_level)
    found.push(update([10, 11], "length"))
    assert found.output().logprobs is None


def test_an_error_keeps_its_reason(byte_level):
    found = sequence(byte_level)
    found.push(update([], "error", "logits were not finite"))
    assert found.output() == CompletionOutput(
        index=0, text="", token_ids=[], cumulative_logprob=0.0, finish_reason="error",
        stop_reason="logits were not finite",
    )  # fmt: skip


@given(data=st.data())
def test_how_tokens_are_grouped_into_updates_does_not_matter(byte_level, data):
    ids = data.draw(st.lists(st.integers(3, byte_level.vocab_size - 1), max_size=30))
    stops = data.draw(st.lists(st.text("etao ", min_size=1, max_size=2), max_size=2))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    params = {"stop": stops, "min_tokens": data.draw(st.integers(0, 5)), "max_tokens": None}
    whole, parts = sequence(byte_level, **params), sequence(byte_level, **params)
    whole.push(update(ids, "length"))
    deltas = [parts.push(update(ids[a:b])) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    deltas.append(parts.push(update([], "length")))
    assert "".join(deltas) == parts.text
    assert parts.output() == whole.output()


def outputs(*sums_and_lengths: tuple[float, int]) -> list[CompletionOutput]:
    return [
        CompletionOutput(index=i, text=str(i), token_ids=[0] * length, cumulative_logprob=total)
        for i, (total, length) in enumerate(sums_and_lengths)
    ]


def test_best_is_by_mean_log_probability():
    best = choose_best(outputs((-8.0, 4), (-3.0, 3), (-10.0, 20), (-2.0, 2)), 3)
    assert [s.text for s in best] == ["2", "1", "3"]  # means -0.5, -1, -1 (a tie), -2
    assert [s.index for s in best] == [0, 1, 2]


def test_best_of_sequences_without_tokens():
    assert [s.text for s in choose_best(outputs((0.0, 0), (-1.0, 1)), 1)] == ["0"]
