import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.engine.token_counts import TokenCounts
from octavo.execution.sampler import begin_sample, logprob_rows, sample
from octavo.step import Penalties, SamplingRows


def rows(count: int, seed: int = 0, **columns) -> SamplingRows:
    base = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "num_logprobs": -1}
    kinds = {"top_k": np.int32, "num_logprobs": np.int32}
    sparse = {
        name: columns.pop(name)
        for name in ("penalties", "logit_bias", "banned", "named", "masks", "masked")
        if name in columns
    }
    values = {
        name: np.broadcast_to(np.asarray(columns.get(name, default), kinds.get(name, np.float32)), count).copy()
        for name, default in base.items()
    }
    return SamplingRows(
        token_index=np.arange(count, dtype=np.int32),
        seed=np.arange(seed, seed + count).astype(np.uint64),
        position=np.zeros(count, np.int64),
        **values,
        **sparse,
    )


def penalties(presence, frequency, repetition, prompt, output) -> Penalties:
    counts = TokenCounts(prompt)
    for token in output:
        counts.add(token)
    return Penalties(presence, frequency, repetition, *counts.now())


def bias(added: dict[int, float]):
    return np.array([*added], np.int64), np.array([*added.values()], np.float32)


def allowed(row: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """The distribution by definition, one row, with a full sort: the oracle."""
    x = row.double() / temperature
    x[x.softmax(-1) < min_p * x.softmax(-1).max() * (1 - 1e-9)] = -torch.inf
    if top_k:
        x[x < x.sort(descending=True).values[min(top_k, len(x)) - 1]] = -torch.inf
    order = x.argsort(descending=True, stable=True)
    before = x.softmax(-1)[order].cumsum(-1) - x.softmax(-1)[order]
    kept = order[: max(1, int((before < top_p).sum()))] if top_p < 1 else order
    x[x < x[kept].min()] = -torch.inf
    return {i: p for i, p in enumerate(x.softmax(-1).tolist()) if p > 0}


FILTERS = [
    {}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.5}, {"top_p": 0.999}, {"top_k": 1},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.05}, {"temperature": 0.3, "top_p": 0.8}, {"temperature": 3.0, "min_p": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("filters", FILTERS)
def test_draws_follow_the_defined_distribution(filters):
    torch.manual_seed(0)
    row = torch.randn(50) * 2
    draws = 20_000
    tokens, _ = sample(row.expand(draws, -1), rows(draws, **filters))
    want = allowed(row, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **filters})
    seen = np.bincount(tokens, minlength=50) / draws
    assert set(np.flatnonzero(seen)) <= set(want)
    for token, p in want.items():
        assert abs(seen[token] - p) < 4.5 * (p * (1 - p) / draws) ** 0.5 + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 1e-6, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 50, 5000]),
    top_p=st.sampled_from([1.0, 0.9999, 0.9, 0.2, 1e-6]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_a_row_is_drawn_alike_alone_and_in_any_company(seed, temperature, top_k, top_p, min_p):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3000, generator=generator) * 0.5  # flat: the nucleus outgrows the candidates
    mixed = rows(5, seed, temperature=[temperature, 1, 0, 0.7, 1], top_k=[top_k, 0, 3, 40, 0],
                 top_p=[top_p, 0.95, 1, 0.5, 1], min_p=[min_p, 0, 0, 0.1, 0])  # fmt: skip
    together, _ = sample(logits, mixed)
    alone, _ = sample(logits[:1], rows(1, seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    assert together[0] == alone[0]
    if temperature:
        assert together[0] in allowed(logits[0], temperature, top_k, top_p, min_p)
    else:
        assert together[0] == logits[0].argmax()


def test_bias_bans_and_penalties_touch_their_own_row_only():
    logits = torch.zeros(4, 10)
    logits[:, 3], logits[:, 4], logits[:, 5] = 3.0, 2.0, 1.0
    treated = rows(
        4, temperature=0.0,
        logit_bias={0: bias({7: 100.0})}, banned={1: np.array([3])},
        penalties={2: penalties(0.0, 0.0, 2.0, [3], [4, 4])},
    )  # fmt: skip
    before = logits.clone()
    assert sample(logits, treated)[0].tolist() == [7, 4, 3, 3]  # row 2: 3/2 and 2/2 against 1 -> 3 still leads
    treated.penalties[2] = penalties(1.0, 0.5, 1.0, [3], [3, 3, 4])  # 3 - 1 - 2*0.5 = 1; 2 - 1.5; 5 stays
    treated.logit_bias[2] = bias({5: 0.01})
    assert sample(logits, treated)[0].tolist() == [7, 4, 5, 3]
    assert torch.equal(logits, before)


def test_a_mask_leaves_what_it_allows_and_an_empty_one_marks_its_row():
    logits = torch.randn(4, 70)
    masks = np.zeros((3, 3), np.uint32)
    masks[0, 1], masks[2, 2] = 1 << 5 | 1 << 9, 1
    before = logits.clone()
    masked = {"masks": masks, "masked": np.array([0, 1, 3], np.int32)}
    free = sample(logits, rows(4))[0]
    for filters in FILTERS:
        wanted = rows(4, num_logprobs=2, **filters, **masked)
        tokens, logprobs = sample(logits, wanted)
        assert tokens[0] in (37, 41)
        assert (tokens[1], tokens[3]) == (-1, 64)
        assert sorted(logprobs) == [0, 2, 3]
        own = logits[3].log_softmax(-1)
        assert logprobs[3].logprobs == pytest.approx([own[64].item(), *own.topk(2).values.tolist()], abs=1e-5)
    assert sample(logits, rows(4, **masked))[0][2] == free[2]
    assert torch.equal(logits, before)


def test_a_row_that_is_not_finite_is_marked_and_harms_no_other():
    logits = torch.randn(3, 20)
    want = sample(logits, rows(3))[0].tolist()
    logits[1, 4] = torch.nan
    assert sample(logits, rows(3, num_logprobs=[0, 0, 0]))[0].tolist() == [want[0], -1, want[2]]


def test_logprobs_are_the_models_own_with_rank_and_alternatives():
    torch.manual_seed(1)
    logits = torch.randn(3, 30)
    tokens, logprobs = sample(logits, rows(3, temperature=5.0, top_k=10, num_logprobs=[-1, 0, 4]))
    assert sorted(logprobs) == [1, 2]
    reference = logits.log_softmax(-1)
    for row in (1, 2):
        token = int(tokens[row])
        assert logprobs[row].token_ids[0] == token
        assert logprobs[row].logprobs[0] == pytest.approx(reference[row, token].item(), abs=1e-5)
        assert logprobs[row].rank == 1 + int((reference[row] > reference[row, token]).sum())
    assert logprobs[2].token_ids[1:] == reference[2].topk(4).indices.tolist()
    assert logprob_rows(logits[:1], [7], [0])[0].token_ids == [7]


def test_tokens_asked_for_by_name_come_last_and_treatment_does_not_touch_them():
    logits = torch.randn(4, 300)
    own = logits.log_softmax(-1)
    named = {0: np.array([299, 0, 5]), 2: np.array([7])}
    wanted = rows(4, num_logprobs=[0, 1, 2, -1], named=named, banned={0: np.array([5]), 2: np.array([7])})
    tokens, found = sample(logits, wanted)
    assert sorted(found) == [0, 1, 2]
    for row, entry in found.items():
        names = named.get(row, np.zeros(0)).tolist()
        top = own[row].topk(row).indices.tolist()
        assert entry.token_ids == [tokens[row], *top, *names]
        assert entry.named == len(names)
        assert entry.logprobs == pytest.approx(own[row, torch.tensor(entry.token_ids).long()].tolist(), abs=1e-5)


class NoWaiting(TorchDispatchMode):
    """Raises where an operation would wait for the values on a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::bincount"), name
        if name.startswith("aten::index"):
            indices = [x for x in args[1] if x is not None] if isinstance(args[1], (list, tuple)) else []
            assert not any(x.dtype == torch.bool for x in indices), "a mask as an index"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0.0, 0.8, [0.0, 0.8, 0.0]])
def test_nothing_waits_for_the_device_before_the_end(temperature):
    wanted = rows(
        3, temperature=temperature, min_p=0.1, num_logprobs=[2, -1, 0], logit_bias={0: bias({3: 1.0})},
        banned={1: np.array([4])}, penalties={2: penalties(0.5, 0.5, 1.2, [1, 2], [3])},
        named={2: np.array([1, 9])}, masks=np.full((2, 1), 0x0FFFFF80, np.uint32), masked=np.array([1, 2], np.int32),
    )  # fmt: skip
    logits, unlisted = torch.randn(3, 30), torch.tensor([-1, -1, 7])
    with NoWaiting():
        tokens, wait = begin_sample(logits, wanted, unlisted)
    listed = dataclasses.replace(wanted, penalties={2: penalties(0.5, 0.5, 1.2, [1, 2], [3, 7])})
    assert wait()[0].tolist() == tokens.tolist() == sample(logits, listed)[0].tolist()
    assert sorted(wait()[1]) == [0, 2]
