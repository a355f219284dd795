"""Cases of masks of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from octavo_kernels.timing import Bench, Case
from octavo_kernels.token_mask import mask_tensors_, mask_tokens_

VOCABULARIES = 49_152, 151_936, 262_144


def _fill(logits: Tensor, forbidden: Tensor) -> None:
    logits.masked_fill_(forbidden, -torch.inf)


def _case(bench: Bench, rows: int, vocab: int) -> Case:
    """Nearly all is forbidden, as in the middle of a JSON document: a write of the whole row."""
    logits, where = torch.zeros(rows, vocab, device=bench.device), torch.arange(rows, device=bench.device)
    masks = np.zeros((rows, vocab // 32), np.uint32)
    masks[:, ::97] = 5
    forbidden = torch.from_numpy(np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little") == 0).to(bench.device)
    bits = torch.from_numpy(masks.view(np.int32)).to(bench.device)
    run = partial(mask_tensors_, logits, where, bits)
    if bench.device == "cpu":
        run = partial(mask_tokens_, logits.numpy(), where.numpy(), masks)
    moved = logits.nbytes + masks.nbytes
    return Case("token_mask", f"{rows} x {vocab}", run, moved, rivals={"torch_fill": partial(_fill, logits, forbidden)})


def cases(bench: Bench) -> Iterator[Case]:
    """One row and some, for vocabularies of three families."""
    for vocab in VOCABULARIES:
        for rows in [rows for rows in bench.size.rows if rows <= 64]:
            yield _case(bench, rows, vocab)
