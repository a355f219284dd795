"""Collectives of the ranks that share a model: a `TPGroup` over torch.distributed, NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import (
    GatherOptions,
    PrefixStore,
    ProcessGroupGloo,
    Store,
    Work,
)
from torch.nn import functional as F  # noqa: N812

from octavo.errors import EngineDead
from octavo.models.parallel import Share, TPGroup

TIMEOUT = timedelta(minutes=10)
"""A rank that lives and keeps the others waiting for so long in half a layer is stuck; one that dies is found by its
connection. A step of many minutes is honest: a whole one of 1,024 tokens takes an 8B model 65 s on two cores."""


class DistributedGroup(TPGroup):
    """Ranks in several processes (or threads), each with the others' weights beside its own.

    It has process groups of its own, not torch's global one, so that a process can be in several.

    Args:
        store: where the ranks find each other.
        rank, size: of this process.
        device: "cpu", "auto" or "cuda" give every rank its own; "cuda:N" is one that they share, which NCCL cannot do.
        host: this machine as the other ranks see it.
        check: called while this rank waits for the others to load; raises when that is in vain.

    Raises:
        EngineDead: in any method, when another rank is gone or silent.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        device: str,
        host: str = "127.0.0.1",
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.rank, self.size = rank, size
        self._store, self._check = store, check
        self._num_asked = 0
        gloo: Any = ProcessGroupGloo  # torch's stubs know little of it
        options = gloo._Options()
        options._timeout = TIMEOUT
        options._devices = [gloo.create_device(hostname=host)]
        self._gloo = gloo(store, rank, size, options)
        own_gpus = device in ("auto", "cuda") and torch.cuda.is_available()
        self._group: Any = _nccl(PrefixStore("nccl", store), rank, size) if own_gpus else self._gloo
        # at exit, too: a thread of gloo's that lets a tensor go once the interpreter has ended aborts the process
        weakref.finalize(self, vars(self).clear)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Replace `x` by the sum of all ranks' `x`, and return it."""
        self._wait(self._group.allreduce([x]))
        return x

    def gather(self, x: Tensor) -> list[Tensor] | None:
        """All ranks' `x`, which have one shape, on rank 0; None on the others."""
        options = GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        if x.numel():
            self._wait(self._group.gather([parts] if parts else [], [x], options))
        return parts or None

    def smallest(self, value: int) -> int:
        """The smallest of all ranks' values, for which each waits while the others load, however long that takes."""
        self._num_asked += 1
        keys = [f"value {self._num_asked} of rank {rank}" for rank in range(self.size)]
        try:
            self._store.set(keys[self.rank], f"{value:d}")  # True is 1
            while not self._store.check(keys):
                self._check()
                time.sleep(0.02)
            return min(int(self._store.get(key)) for key in keys)
        except RuntimeError as error:
            raise EngineDead(f"rank {self.rank} of {self.size} lost the others: {error}") from error

    def _wait(self, work: Work) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise EngineDead(f"rank {self.rank} of {self.size} lost the others: {error}") from error


def join_vocabulary(logits: Tensor, share: Share, group: TPGroup) -> Tensor | None:
    """Each rank's [R, its part of V] -> [R, V] on rank 0; None on the others, which have no tokens to draw."""
    if group.size == 1:
        return logits
    parts = group.gather(F.pad(logits, (0, share.vocab_step - logits.shape[1])))
    return None if parts is None else torch.cat(parts, dim=1)[:, : share.whole.vocab_size].contiguous()


def _nccl(store: Store, rank: int, size: int) -> Any:
    from torch.distributed.distributed_c10d import ProcessGroupNCCL  # not in torch's builds for CPUs

    options = ProcessGroupNCCL.Options()
    options._timeout = TIMEOUT
    return ProcessGroupNCCL(store, rank, size, options)
