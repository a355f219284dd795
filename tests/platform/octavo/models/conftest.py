"""A decoder driven by hand over a paged cache, and transformers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo.models.decoder import Decoder
from octavo_kernels.paged_attention import PagedBatch

BLOCK = 4


class PagedRun:
    """Sequences that grow by ragged steps; their blocks are scattered over a cache that starts as NaN."""

    def __init__(self, decoder: Decoder, num_sequences: int, max_tokens: int, seed: int = 0) -> None:
        self.decoder = decoder
        self.computed = [0] * num_sequences
        spec, per_sequence = decoder.spec, -(-max_tokens // BLOCK)
        num_blocks = num_sequences * per_sequence + 5
        blocks = np.random.default_rng(seed).permutation(num_blocks)[: num_sequences * per_sequence]
        self.tables = blocks.reshape(num_sequences, per_sequence).astype(np.int32)
        shape = (num_blocks, BLOCK, spec.num_kv_heads, spec.head_dim)
        self.kv = [
            (torch.full(shape, torch.nan, dtype=decoder.dtype), torch.full(shape, torch.nan, dtype=decoder.dtype))
            for _ in range(spec.num_layers)
        ]

    def step(self, chunks: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Sequence -> its next tokens, in any order; gives each one's logits [n, V]."""
        rows = list(chunks)
        for row in rows:
            self.computed[row] += len(chunks[row])
        lens = [len(chunks[row]) for row in rows]
        starts = np.concatenate(([0], np.cumsum(lens))).astype(np.int32)
        contexts = np.array([self.computed[row] for row in rows], np.int32)
        batch = PagedBatch.build(starts, contexts, self.tables[rows], BLOCK, self.decoder.device)
        tokens = torch.tensor([token for row in rows for token in chunks[row]])
        logits = self.decoder.logits(self.decoder.forward(tokens, batch, self.kv))
        return dict(zip(rows, logits.split(lens), strict=True))

    def all_logits(self, sequences: list[list[int]], seed: int = 0) -> list[torch.Tensor]:
        """Logits at every position, computed in steps of random chunks from a random choice of sequences."""
        random, parts = np.random.default_rng(seed), [[] for _ in sequences]
        while left := [i for i, tokens in enumerate(sequences) if self.computed[i] < len(tokens)]:
            chosen = random.permutation(left)[: random.integers(1, len(left) + 1)].tolist()
            ends = {i: self.computed[i] + int(random.choice([1, 1, 3, 16])) for i in chosen}
            for i, logits in self.step({i: sequences[i][self.computed[i] : ends[i]] for i in chosen}).items():
                parts[i].append(logits)
        return [torch.cat(part) for part in parts]

    def greedy(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """`num_tokens` greedy tokens after each prompt, all in one batch."""
        chunks = dict(enumerate(prompts))
        outputs: list[list[int]] = [[] for _ in prompts]
        for _ in range(num_tokens):
            for i, logits in self.step(chunks).items():
                outputs[i].append(int(logits[-1].argmax()))
            chunks = {i: output[-1:] for i, output in enumerate(outputs)}
        return outputs


@pytest.fixture(scope="session")
def paged_run() -> type[PagedRun]:
    return PagedRun


class Reference:
    """transformers' own model of a checkpoint, in float32 with eager attention."""

    def __init__(self, folder: Path, **options: Any) -> None:
        from transformers import AutoModelForCausalLM

        options = {"attn_implementation": "eager", "dtype": torch.float32} | options
        self.model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()

    @torch.no_grad()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([tokens])).logits[0].float()

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    return Reference


@pytest.fixture(scope="session")
def sequences() -> list[list[int]]:
    """Token ids below 256 of several lengths, one of a single token."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, length).tolist() for length in (70, 1, 33, 16, 5)]
