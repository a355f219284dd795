from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import BadRequest
from octavo.pooled import (
    check_dimensions,
    check_prompt,
    check_task,
    cosine,
    probabilities,
    score_task,
    truncated,
    vector,
)
from octavo.pooling import PoolingInfo

INFO = PoolingInfo(dimensions=4)


def raw(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def test_a_vector_is_cut_before_it_gets_its_length():
    assert vector(raw(3, 4, 12, 0), INFO, 2).tolist() == pytest.approx([0.6, 0.8])
    assert vector(raw(3, 4, 12, 0), INFO).tolist() == pytest.approx([3 / 13, 4 / 13, 12 / 13, 0])
    assert vector(raw(3, 4, 12, 0), INFO, normalise=False).tolist() == [3, 4, 12, 0]
    assert vector(raw(3, 4), PoolingInfo(normalise=False)).tolist() == [3, 4]
    assert vector(raw(3, 4), PoolingInfo(normalise=False), normalise=True).tolist() == pytest.approx([0.6, 0.8])
    assert vector(raw(0, 0), INFO).tolist() == [0, 0]


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9))
def test_lengths_are_one_for_small_and_large_values(values):
    found = vector(raw(*values), INFO)
    if np.abs(np.array(values, np.float32)).max() > 1e-30:
        assert np.linalg.norm(found.astype(np.float64)) == pytest.approx(1, abs=1e-6)


def test_classes_become_probabilities_as_the_model_says():
    one, three = PoolingInfo(activation="sigmoid"), PoolingInfo(activation="softmax")
    assert probabilities(raw(0), one).tolist() == [0.5]
    assert probabilities(raw(-1e9, 1e9), one).tolist() == pytest.approx([0, 1])
    assert probabilities(raw(1e4, 1e4, -1e9), three).tolist() == [0.5, 0.5, 0]
    assert probabilities(raw(3, -2), three, activation=False).tolist() == [3, -2]
    assert probabilities(raw(3, -2), PoolingInfo()).tolist() == [3, -2]


def test_cosines():
    a, b = np.array([1, 0], np.float32), np.array([1e-20, 1e-20], np.float32)
    assert cosine(a, b) == pytest.approx(0.5**0.5)
    assert cosine(a, -a) == -1
    assert cosine(a, 0 * a) == 0


def test_texts_are_cut_before_the_special_tokens_that_end_them():
    special = {101, 102}.__contains__
    ids = [101, 1, 2, 3, 4, 102]
    assert [truncated(ids, most, special) for most in (None, 6, 5, 3, 2, 1)] == [
        ids, ids, [101, 1, 2, 3, 102], [101, 1, 102], [101, 102], [101]
    ]  # fmt: skip
    assert truncated([1, 2, 3], 2, special) == [1, 2]
    assert truncated([1, 2, 3, 101, 102], 4, special) == [1, 2, 101, 102]


def test_dimensions_are_those_that_the_model_was_trained_for():
    check_dimensions(None, INFO)
    check_dimensions(3, INFO)
    for wrong in (0, 5, True, 2.0):
        with pytest.raises(BadRequest, match="1 to 4"):
            check_dimensions(wrong, INFO)
    check_dimensions(4, PoolingInfo(dimensions=4, matryoshka=(2,)))
    with pytest.raises(BadRequest, match="trained for: 2"):
        check_dimensions(3, PoolingInfo(dimensions=4, matryoshka=(2,)))


def test_prompts_go_by_name():
    info = PoolingInfo(prompts={"query": "Q: ", "document": ""}, default_prompt="query")
    assert [check_prompt(name, info) for name in (None, "query", "document")] == ["Q: ", "Q: ", ""]
    assert check_prompt(None, INFO) == ""
    with pytest.raises(BadRequest, match="no prompt 'x': it has 'query', 'document'"):
        check_prompt("x", info)
    with pytest.raises(BadRequest, match="it has none"):
        check_prompt("x", INFO)


def test_a_model_says_what_it_is_for():
    check_task("embed", ("generate", "embed"), "m")
    with pytest.raises(BadRequest, match=r"^m cannot generate text: it can make embeddings \(LLM.embed"):
        check_task("generate", ("embed",), "m")


def test_pairs_are_compared_by_a_head_with_one_class_or_by_vectors():
    assert score_task(INFO) == "embed"
    assert score_task(PoolingInfo(tasks=("classify",), labels=("relevant",))) == "classify"
    with pytest.raises(BadRequest, match="3 classes"):
        score_task(PoolingInfo(tasks=("classify", "embed"), labels=("a", "b", "c")))
