import pickle

import pytest

from octavo.errors import BadRequest
from octavo.request import Request, SamplingParams


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("n", 0), ("n", 1.5), ("n", True), ("n", 129), ("best_of", 0), ("temperature", -0.1), ("temperature", "hot"),
        ("temperature", float("nan")), ("top_k", -2), ("top_p", -0.1), ("top_p", 1.1), ("min_p", -1),
        ("presence_penalty", 2.1), ("frequency_penalty", -3), ("repetition_penalty", 0), ("min_tokens", -1),
        ("max_tokens", -5), ("max_tokens", float("inf")), ("seed", 2**64), ("logprobs", 21),
        ("prompt_logprobs", -1), ("logit_bias", {1: 101}), ("logit_bias", {-1: 1}), ("stop", ""), ("stop", ["a"] * 17),
        ("stop_token_ids", [-1]), ("stop", ["a" * 1025]), ("stop_token_ids", [1] * 1025), ("top_k", 2**63),
        ("min_tokens", 2**70), ("logit_bias", {2**31: 1}), ("logprob_token_ids", [-1]),
        ("logprob_token_ids", [1] * 1025), ("logprob_token_ids", "1"), ("logprob_token_ids", [True]),
        pytest.param("max_tokens", 10**5000, id="5,000 digits"),
        pytest.param("temperature", 10**5000, id="as a number"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(param, value):
    with pytest.raises(BadRequest) as raised:
        SamplingParams(**{param: value})
    assert raised.value.param == param
    assert param in str(raised.value)


def test_combinations():
    with pytest.raises(BadRequest, match="exceeds max_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
    with pytest.raises(BadRequest, match="best_of must be at least 3"):
        SamplingParams(n=3, best_of=2)
    assert SamplingParams(n=2, best_of=5).num_sequences == 5
    assert SamplingParams(stop="x").stop_strings == ["x"]


def test_a_request_draws_its_seed_once_and_keeps_it_on_the_way():
    params = SamplingParams()
    requests = [Request(request_id="a", prompt_token_ids=[1], params=params) for _ in range(2)]
    assert requests[0].seed != requests[1].seed
    assert pickle.loads(pickle.dumps(requests[0])) == requests[0]
    assert Request(request_id="a", prompt_token_ids=[1], params=SamplingParams(seed=5)).seed == 5


@pytest.mark.parametrize(
    ("param", "value"),
    [("weight", 0), ("weight", 1e7), ("weight", "1"), ("cache_share", 1.5), ("deadline", 0.0), ("deadline", -1),
     ("deadline", 1e6), ("deadline", float("nan"))],
)  # fmt: skip
def test_a_wrong_weight_or_deadline_is_named(param, value):
    with pytest.raises(BadRequest, match=param):
        Request(request_id="a", prompt_token_ids=[1], **{param: value})


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(BadRequest("say less", "prompt")))
    assert (str(error), error.param) == ("say less", "prompt")


def test_a_top_p_of_nothing_is_greedy():
    params = SamplingParams(top_p=0, temperature=1.5)
    assert (params.temperature, params.top_p) == (0, 1)


def test_a_seed_of_minus_one_is_none():
    seeds = {Request(request_id="a", prompt_token_ids=[1], params=SamplingParams(seed=-1)).seed for _ in range(3)}
    assert len(seeds) == 3
    assert Request(request_id="a", prompt_token_ids=[1], params=SamplingParams(seed=-2)).seed == 2**64 - 2


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("allowed_token_ids", []), ("allowed_token_ids", [1.5]), ("allowed_token_ids", [1] * 70_000),
        ("bad_words", ["a"] * 1025), ("bad_words", [""]), ("bad_words", ["a" * 1025]), ("bad_words", "a"),
    ],
)  # fmt: skip
def test_lists_of_tokens_and_words_are_bounded(param, value):
    with pytest.raises(BadRequest) as raised:
        SamplingParams(**{param: value})
    assert raised.value.param == param


@pytest.mark.parametrize("ids", [[[]], [[1] * 65], [[1]] * 3000])
def test_what_bad_words_become_is_bounded(ids):
    with pytest.raises(BadRequest, match="bad_words become"):
        SamplingParams(bad_token_ids=ids)
