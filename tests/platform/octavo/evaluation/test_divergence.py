"""Divergence of models whose distributions are known."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from octavo.evaluation.divergence import CHUNK, cut, greedy_divergence, measure, window_logits
from octavo.layer_groups import ONE_GROUP

VOCAB = 11


class Table:
    """Logits that depend on a sequence's last two tokens, which it reads through its block tables."""

    block_size, groups = 4, ONE_GROUP
    spec = SimpleNamespace(vocab_size=VOCAB)

    def __init__(self, noise=0.0):
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(VOCAB, VOCAB, VOCAB, generator=generator)
        self.table += noise * torch.randn(VOCAB, VOCAB, VOCAB, generator=generator)
        self.cache = np.full(4096, -1)
        self.most_tokens = 0

    def logits(self, batch):
        rows = []
        for s, context in enumerate(batch.context_lens):
            new = batch.token_ids[batch.query_start[s] : batch.query_start[s + 1]]
            slots = (batch.block_tables[s][:, None] * self.block_size + np.arange(self.block_size)).ravel()
            self.cache[slots[context - len(new) : context]] = new
            known = np.concatenate([[0], self.cache[slots[:context]]])
            rows += [self.table[known[i], known[i + 1]] for i in range(context - len(new), context)]
        self.most_tokens = max(self.most_tokens, len(rows))
        return torch.stack(rows)

    def after(self, tokens):
        known = [0, *tokens]
        return torch.stack([self.table[a, b] for a, b in pairwise(known)])


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, VOCAB, 300).tolist()


def test_a_window_is_read_in_chunks(tokens):
    model = Table()
    got = torch.cat(list(window_logits(model, tokens)))
    assert torch.equal(got, model.after(tokens)[:-1])
    assert model.most_tokens == CHUNK


def test_figures_are_those_of_their_definitions(tokens):
    model, reference = Table(0.5), Table()
    windows = cut(tokens, 100, [])
    found = measure(model, reference, windows)
    p = torch.cat([reference.after(w)[:-1] for w in windows]).double().softmax(-1)
    q = torch.cat([model.after(w)[:-1] for w in windows]).double().softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    following = torch.tensor([token for w in windows for token in w[1:]])
    assert found.tokens == 297
    assert found.mean_kl == pytest.approx(kl.mean().item(), rel=1e-5)
    assert found.max_kl == pytest.approx(kl.max().item(), rel=1e-5)
    assert found.p99_kl == pytest.approx(kl.quantile(0.99).item(), rel=1e-5)
    assert found.top1 == (p.argmax(-1) == q.argmax(-1)).double().mean()
    for x, perplexity in ((q, found.perplexity), (p, found.reference_perplexity)):
        assert perplexity == pytest.approx(x.gather(1, following[:, None]).log().mean().neg().exp().item(), rel=1e-5)


def test_a_model_does_not_diverge_from_itself(tokens):
    found = measure(Table(), Table(), [tokens])
    assert (found.mean_kl, found.max_kl, found.top1) == (0, 0, 1)
    assert greedy_divergence(Table(), Table(), [tokens[:5], tokens[5:10]], 40) == [None, None]


def greedy(model, prompt, count):
    line = list(prompt)
    for _ in range(count):
        line.append(int(model.after(line)[-1].argmax()))
    return line[len(prompt) :]


def test_greedy_divergence_is_where_two_continuations_part(tokens):
    model, reference = Table(0.3), Table()
    prompts = [tokens[i : i + 7] for i in range(0, 70, 7)]
    found = greedy_divergence(model, reference, prompts, 12)
    for prompt, place in zip(prompts, found, strict=True):
        pairs = zip(greedy(model, prompt, 12), greedy(reference, prompt, 12), strict=True)
        assert place == next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    assert len(set(found)) > 2


def test_nan_is_no_small_divergence(tokens):
    model = Table()
    model.table[3, 4, 5] = torch.nan
    assert not measure(model, Table(), [tokens]).mean_kl <= 1e9


@pytest.mark.parametrize(
    ("length", "window", "begin", "lengths"),
    [(10, 4, [], [4, 4, 2]), (9, 4, [], [4, 4]), (9, 4, [7], [4, 4, 4]), (10, 4, [7], [4, 4, 4]), (1, 4, [], [])],
)
def test_windows(length, window, begin, lengths):
    windows = cut(list(range(length)), window, begin)
    assert [len(w) for w in windows] == lengths
    assert all(w[: len(begin)] == begin for w in windows)
    assert [token for w in windows for token in w[len(begin) :]] == list(
        range(sum(lengths) - len(begin) * len(lengths))
    )
