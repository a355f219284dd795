from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text.detokenizer import MAX_HELD, IncrementalDetokenizer, TextOffsets, prompt_offsets
from octavo.text.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int], skip: bool = True, prompt: list[int] | None = None) -> list[str]:
    """What each token adds, and last what `finish` adds."""
    detokenizer = IncrementalDetokenizer(tokenizer, prompt or [], skip)
    return [*(detokenizer.push([token_id]) for token_id in ids), detokenizer.finish()]


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


TEXT = st.text(
    st.one_of(st.characters(blacklist_categories=["Cs"]), st.sampled_from(list(" 🙂👍🏽日本é\n▁"))), max_size=40
)


@given(text=TEXT, skip=st.booleans())
def test_pieces_of_a_text_are_the_decoded_text(tokenizer, text, skip):
    ids = tokenizer.encode(text)
    assert "".join(pieces(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("name", ["byte_level", "smollm2"])
@given(data=st.data())
def test_pieces_of_any_ids_are_the_decoded_text(request, name, data):
    tokenizer = request.getfixturevalue(name)
    # the vocabulary's first ids are special tokens and bytes: invalid UTF-8 is common
    token_id = st.one_of(st.integers(0, 300), st.integers(0, tokenizer.vocab_size + 5))
    ids, skip = data.draw(st.lists(token_id, max_size=40)), data.draw(st.booleans())
    assert "".join(pieces(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@given(data=st.data())
def test_pieces_of_any_sentencepiece_ids_are_the_decoded_text(sentencepiece, data):
    ordinary = st.integers(259, sentencepiece.vocab_size + 5)  # ids 3 to 258 are bytes
    runs = st.lists(st.tuples(st.lists(st.integers(0, 258), max_size=MAX_HELD), ordinary), max_size=5)
    ids = [i for run, end in data.draw(runs) for i in (*run, end) if i < sentencepiece.vocab_size]
    # without special tokens in between no run is longer than MAX_HELD
    ids = _split_runs(ids)
    skip = data.draw(st.booleans())
    assert "".join(pieces(sentencepiece, ids, skip)) == sentencepiece.decode(ids, skip)


def _split_runs(ids: list[int]) -> list[int]:
    out, length = [], 0
    for token_id in ids:
        length = length + 1 if token_id < 259 else 0
        if length > MAX_HELD:
            out.append(300)
            length = 1
        out.append(token_id)
    return out


@given(data=st.data())
def test_grouping_of_tokens_does_not_matter(byte_level, sentencepiece, data):
    for tokenizer in (byte_level, sentencepiece):
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
        detokenizer = IncrementalDetokenizer(tokenizer)
        assert detokenizer.push(ids) + detokenizer.finish() == "".join(pieces(tokenizer, ids))


@pytest.mark.parametrize("text", ["🙂", "a🙂b", "日本語", "👨‍👩‍👧‍👦 family", "é" * 3])
def test_no_piece_holds_half_a_character(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = pieces(tokenizer, ids)
    assert all("\ufffd" not in piece for piece in found)
    assert "".join(found) == tokenizer.decode(ids)


def test_a_byte_level_character_comes_with_its_last_token(byte_level):
    ids = byte_level.encode("a🙂", add_special_tokens=False)
    found = pieces(byte_level, ids)
    assert found[0] == "a"
    assert found[-2:] == ["🙂", ""]


def test_a_hopeless_byte_holds_nothing_back(byte_level):
    byte = byte_level.encode("🙂", add_special_tokens=False)[0]
    letter = byte_level.encode("a", add_special_tokens=False)
    assert pieces(byte_level, [byte, *letter, *letter]) == ["", "\ufffda", "a", ""]


def test_sentencepiece_bytes_come_when_the_run_ends(sentencepiece):
    ids = sentencepiece.encode("x🙂 y", add_special_tokens=False)
    found = [piece for piece in pieces(sentencepiece, ids) if piece]
    assert "".join(found) == "x🙂 y"
    assert any(piece.startswith("🙂") for piece in found)


def test_a_long_run_of_sentencepiece_bytes_is_not_held_for_ever(sentencepiece):
    ids = sentencepiece.encode("🙂" * 20, add_special_tokens=False)
    found = pieces(sentencepiece, ids)
    assert found[: MAX_HELD + 1] == [""] * (MAX_HELD + 1)  # the leading space's token and the first bytes
    assert found[MAX_HELD + 1] == "🙂" * 4
    assert found[MAX_HELD + 2 : -1] == ["", "", "🙂", ""] * 15 + ["", "", "🙂"]
    assert "".join(found) == "🙂" * 20


def test_a_long_run_of_hopeless_sentencepiece_bytes_is_released(sentencepiece):
    byte = sentencepiece.token_id("<0xFF>")
    found = pieces(sentencepiece, [byte] * (MAX_HELD + 4))
    assert found[MAX_HELD] == "\ufffd" * (MAX_HELD + 1)
    assert "".join(found) == "\ufffd" * (MAX_HELD + 4)


def test_sentencepiece_space_after_a_long_run_of_bytes(sentencepiece):
    text = "🙂" * 10 + " dog"
    ids = sentencepiece.encode(text, add_special_tokens=False)
    assert "".join(pieces(sentencepiece, ids)) == sentencepiece.decode(ids) == text


@pytest.mark.parametrize("skip", [True, False])
def test_a_marked_token_is_its_mark_between_whole_texts(tokenizer, skip):
    before, after = (
        tokenizer.encode("so\u00e9", add_special_tokens=False),
        tokenizer.encode("x", add_special_tokens=False),
    )
    marked = before[0]
    expected = "".join(pieces(tokenizer, before[1:], skip)) + "\ud800"
    detokenizer = IncrementalDetokenizer(tokenizer, [], skip, {marked: "\ud800"})
    found = detokenizer.push([*before[1:], marked])
    assert found == expected
    assert (detokenizer.push(after) + detokenizer.finish()).strip() == "x"


@given(prompt=st.text(min_size=1, max_size=10).filter(str.strip), text=st.text(max_size=20))
def test_output_goes_on_from_the_prompt(sentencepiece, prompt, text):
    start, ids = (sentencepiece.encode(t, add_special_tokens=False) for t in (prompt, text))
    found = "".join(pieces(sentencepiece, ids, prompt=start))
    assert sentencepiece.decode(start) + found == sentencepiece.decode([*start, 300, *ids]).replace(
        sentencepiece.decode([*start, 300]), sentencepiece.decode(start), 1
    )


def test_the_space_after_a_prompt_is_kept(sentencepiece):
    ids = sentencepiece.encode("dog", add_special_tokens=False)
    bos = [sentencepiece.bos_token_id]
    assert "".join(pieces(sentencepiece, ids)) == "dog"
    assert "".join(pieces(sentencepiece, ids, prompt=bos)) == "dog"
    assert "".join(pieces(sentencepiece, ids, prompt=sentencepiece.encode("the"))) == " dog"


def test_cost_per_token_does_not_grow(smollm2, sentencepiece):
    for tokenizer in (smollm2, sentencepiece):
        ids = (tokenizer.encode("The quick brown fox 🙂 jumps. ", add_special_tokens=False) * 2000)[:20_000]
        detokenizer = IncrementalDetokenizer(tokenizer)
        seconds = []
        for start in range(0, 20_000, 5_000):
            began = time.perf_counter()
            for token_id in ids[start : start + 5_000]:
                detokenizer.push([token_id])
            seconds.append(time.perf_counter() - began)
        assert min(seconds[2:]) < 3 * max(seconds[:2])
        assert sum(seconds) < 10


@given(text=TEXT)
def test_a_token_stands_where_its_text_or_its_character_begins(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = tokenizer.decode(ids, skip_special_tokens=False)
    offsets = TextOffsets(tokenizer, skip_special_tokens=False).push(ids)
    assert offsets == sorted(offsets)
    for position, (token_id, offset) in enumerate(zip(ids, offsets, strict=True)):
        token = tokenizer.token_text(token_id)
        if "\ufffd" in token:
            assert 0 <= offset < len(shown) or not shown
        elif position or tokenizer.is_byte_level:  # a SentencePiece text has lost its first token's space
            assert shown[offset : offset + len(token)] == token


def test_offsets_of_a_character_of_many_tokens(byte_level):
    ids = byte_level.encode("Hi 🦒🦒 yes")
    offsets = prompt_offsets(byte_level, ids, "Hi 🦒🦒 yes")
    last = [byte_level.token_text(i) for i in ids]
    assert "".join(last).endswith(" yes")
    assert "Hi 🦒🦒 yes"[offsets[len(ids) - len(byte_level.encode(" yes"))] :] == " yes"
    assert sorted({o for o, text in zip(offsets, last, strict=True) if "\ufffd" in text}) == [3, 4]


def test_offsets_in_a_text_that_does_not_show_the_tokens_around_it(sentencepiece):
    text = "hello world"
    ids = sentencepiece.encode(text)
    assert ids[0] == sentencepiece.bos_token_id
    offsets = prompt_offsets(sentencepiece, ids, text)
    assert offsets[:2] == [0, 0]
    assert all(text[o:].startswith(sentencepiece.token_text(i)) for i, o in list(zip(ids, offsets, strict=True))[2:])


def test_tokens_without_a_text_take_no_room(smollm2):
    (end,) = smollm2.encode("<|im_end|>")
    a, b = smollm2.encode("a b")
    assert TextOffsets(smollm2, [a], start=5).push([a, end, b]) == [5, 6, 6]
    assert TextOffsets(smollm2, [a], False, 5).push([a, end, b]) == [5, 6, 6 + len("<|im_end|>")]
