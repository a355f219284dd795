"""Where a step runs: one verb, `launch`, whether in this process, over ranks or in a simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from octavo.layer_groups import LayerGroups
from octavo.request import Adapter
from octavo.step import StepBatch, StepResult

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.execution.parts import Parts
    from octavo.kvcache.tier import KVBlocks
    from octavo.models.spec import ModelSpec

Wait = Callable[[], StepResult]
"""Waits for a launched step and returns its result; raises what the step raised."""


@dataclass(frozen=True, slots=True)
class States:
    """What an executor keeps for recurrent layers.

    Attributes:
        count: states, of a sequence each.
        interval: blocks between the checkpoints of a long prompt.
        num_bytes: of a state.
    """

    count: int
    interval: int
    num_bytes: int


class Shape(Protocol):
    """What the engine asks of a model's shape (a `ModelSpec` says more)."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_position_embeddings(self) -> int: ...

    @property
    def encoder(self) -> object | None:
        """Not None: it takes whole prompts, and stores no keys and values."""
        ...

    @property
    def generates(self) -> bool: ...


class Executor(Protocol):
    """Runs steps; knows nothing of requests.

    Attributes:
        num_blocks: KV blocks it has room for; of an encoder it says nothing.
        groups: of its layers, each with blocks of its own.
        max_in_flight: steps that may be launched before the result of the first is waited for. 1: `launch` returns
            when the step has ended. 2: the next step can be planned and laid out while one runs.
        batch_invariant: whether a token's logits have the same bits whatever else is in its step.
    """

    num_blocks: int
    groups: LayerGroups
    max_in_flight: int
    batch_invariant: bool

    @property
    def spec(self) -> Shape: ...

    @property
    def states(self) -> States | None:
        """Room for the states of recurrent layers; None where the model has none."""
        ...

    @property
    def kv(self) -> KVBlocks | None:
        """The content of its KV cache; None where nothing has all of it."""
        ...

    @property
    def local(self) -> LocalExecutor | None:
        """What has the whole model in this process, for `octavo.evaluation`; None where nothing has."""
        ...

    def launch(self, batch: StepBatch) -> Wait:
        """Begin a step; steps run in the order in which they are launched.

        The batch's arrays may change once this returns.
        """
        ...

    def load_adapter(self, adapter: Adapter) -> int:
        """Read an adapter's files, for steps to name its digest; returns its bytes. May run in a thread beside steps.

        Raises:
            ModelError: it cannot be read, has changed, or is not for this model.
            ConfigError: it cannot run with these settings.
        """
        ...

    def drop_adapter(self, digest: str) -> None:
        """Forget an adapter; steps that were launched before may still use it."""
        ...

    def check_health(self) -> None:
        """Raise EngineDead when what runs the steps is broken; may be called from any thread."""
        ...

    def close(self) -> None:
        """Give up memory and helpers; a step that still runs may fail."""
        ...


class LocalExecutor(Executor, Protocol):
    """An executor that has a model, or one rank's share of it, in this process.

    Attributes:
        block_size: tokens per KV block.
    """

    block_size: int

    @property
    def spec(self) -> ModelSpec:
        """Of the whole model."""
        ...

    @property
    def parts(self) -> Parts:
        """The model, or this rank's share of it, taken apart."""
        ...

    def logits(self, batch: StepBatch) -> Tensor:
        """Run one step that samples nothing: logits [T, V] float32 after every token."""
        ...


def finished(result: StepResult) -> Wait:
    """The wait for a step that has ended."""
    return lambda: result
