"""The gated delta rule: what its formula says, in any chunks and beside anybody, to the bit."""

import numpy as np
import pytest
import torch

from octavo_kernels.delta_rule import delta_rule
from octavo_kernels.state_use import StateUse

KEY_HEADS, VALUE_HEADS, KEY, VALUE = 2, 4, 20, 24


def plain(q, k, v, decay, beta):
    """The formula, in float64."""
    unit = torch.nn.functional.normalize
    q, k = (unit(x.double(), dim=-1, eps=1e-12).repeat_interleave(VALUE_HEADS // KEY_HEADS, 1) for x in (q, k))
    state, out = torch.zeros(VALUE_HEADS, KEY, VALUE, dtype=torch.float64), []
    for t in range(len(q)):
        state = state * decay[t].double().exp()[:, None, None]
        change = beta[t].double()[:, None] * (v[t].double() - torch.einsum("hkv,hk->hv", state, k[t]))
        state = state + torch.einsum("hk,hv->hkv", k[t], change)
        out.append(torch.einsum("hkv,hk->hv", state, q[t]) * KEY**-0.5)
    return torch.stack(out)


def sequence(length, generator):
    shapes = (KEY_HEADS, KEY), (KEY_HEADS, KEY), (VALUE_HEADS, VALUE), (VALUE_HEADS,), (VALUE_HEADS,)
    q, k, v, decay, beta = (torch.randn(length, *shape, generator=generator) for shape in shapes)
    return q, k, v, -decay.abs(), beta.sigmoid()


def in_chunks(sequences, states, seed):
    random, done, out = np.random.default_rng(seed), [0] * len(sequences), [[] for _ in sequences]
    while left := [i for i, x in enumerate(sequences) if done[i] < len(x[0])]:
        rows = random.permutation(left)[: random.integers(1, len(left) + 1)].tolist()
        ends = [done[i] + int(random.choice([1, 1, 2, 9])) for i in rows]
        chunks = [[part[done[i] : end] for part in sequences[i]] for i, end in zip(rows, ends, strict=True)]
        starts = torch.tensor(np.cumsum([0, *(len(chunk[0]) for chunk in chunks)]), dtype=torch.int32)
        use = StateUse(torch.tensor([i if done[i] else -1 for i in rows]), starts[1:].long() - 1, torch.tensor(rows))
        y = delta_rule(*(torch.cat(parts) for parts in zip(*chunks, strict=True)), starts, states, use)
        for i, part in zip(rows, y.split(starts.diff().tolist()), strict=True):
            out[i].append(part)
            done[i] += len(part)
    return [torch.cat(parts) for parts in out]


def test_it_is_the_formula_in_any_chunks():
    generator = torch.Generator().manual_seed(0)
    sequences = [sequence(n, generator) for n in (30, 1, 2, 17)]
    states = torch.full((len(sequences), VALUE_HEADS, KEY, VALUE), torch.nan)
    ours = in_chunks(sequences, states, 0)
    for parts, y in zip(sequences, ours, strict=True):
        torch.testing.assert_close(y.double(), plain(*parts), atol=1e-5, rtol=0)
    for seed in range(1, 4):
        assert all(map(torch.equal, in_chunks(sequences, torch.full_like(states, torch.nan), seed), ours))


def test_what_a_step_leaves_on_the_way_can_be_gone_on_from():
    parts = sequence(20, torch.Generator().manual_seed(1))
    states, starts = torch.zeros(5, VALUE_HEADS, KEY, VALUE), torch.tensor([0, 20], dtype=torch.int32)
    y = delta_rule(*parts, starts, states, StateUse(torch.tensor([-1]), torch.tensor([6, 19]), torch.tensor([3, 0])))
    nothing = torch.zeros(0, dtype=torch.int64)
    rest, short = [part[7:] for part in parts], torch.tensor([0, 13], dtype=torch.int32)
    again = delta_rule(*rest, short, states, StateUse(torch.tensor([3]), nothing, nothing))
    assert torch.equal(again, y[7:])


def test_shapes_that_do_not_fit_are_refused():
    q, k, v, decay, beta = sequence(2, torch.Generator())
    starts, use = torch.tensor([0, 2], dtype=torch.int32), StateUse.nothing(1, q.device)
    good = torch.zeros(1, VALUE_HEADS, KEY, VALUE)
    for bad in ((q, k[:, :1], v, decay, beta, good), (q, k, v, decay, beta, good[:, :2]), (q, k, v, decay, q, good)):
        with pytest.raises(ValueError, match="must be"):
            delta_rule(*bad[:5], starts, bad[5], use)
