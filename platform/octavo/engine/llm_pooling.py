"""What `LLM.embed`, `classify`, `score` and `encode` take and return, with vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from octavo.errors import BadRequest, OctavoError
from octavo.pooled import check_dimensions, probabilities, vector
from octavo.pooling import PoolingInfo
from octavo.request import Request, SequenceUpdate

T = TypeVar("T")
U = TypeVar("U")


@dataclass(slots=True, kw_only=True)
class PoolingParams:
    """What becomes of a text's vector or scores.

    Attributes:
        dimensions: values of a vector to keep; None: all.
        use_activation: whether vectors get length 1, and logits of classes become probabilities; None: as the model's
            makers say.
        truncate_prompt_tokens: tokens of a text to keep, the first ones and those that end each text; -1: as many as
            the model takes. None: a text that is longer than that is refused.
    """

    dimensions: int | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None

    def most_tokens(self, info: PoolingInfo, max_model_len: int) -> int | None:
        """Tokens to keep of a text; None: all.

        Raises:
            BadRequest: `truncate_prompt_tokens` is no such number.
        """
        most, longest = self.truncate_prompt_tokens, min(info.max_tokens or max_model_len, max_model_len)
        if most is None or most == -1:
            return None if most is None else longest
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= longest:
            raise BadRequest(
                f"truncate_prompt_tokens must be -1 or a whole number of 1 to {longest}", "truncate_prompt_tokens"
            )
        return most


@dataclass(slots=True)
class EmbeddingOutput:
    """A text's vector."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    """A value for each of the model's classes."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    """How well two texts go together."""

    score: float


@dataclass(slots=True)
class PoolingOutput:
    """A text's vector, or the values of its classes, as an array."""

    data: npt.NDArray[np.float32]


@dataclass(slots=True)
class PoolingRequestOutput(Generic[T]):
    """A finished request for a vector, scores or classes."""

    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True

    def of(self, outputs: U) -> PoolingRequestOutput[U]:
        """The same with other outputs."""
        return PoolingRequestOutput(self.request_id, outputs, self.prompt_token_ids, self.num_cached_tokens)


EmbeddingRequestOutput = PoolingRequestOutput[EmbeddingOutput]
ClassificationRequestOutput = PoolingRequestOutput[ClassificationOutput]
ScoringRequestOutput = PoolingRequestOutput[ScoringOutput]


class PooledWork:
    """One text on its way to its vector or classes.

    Raises:
        BadRequest: its vector cannot be cut so.
    """

    def __init__(self, request: Request, params: PoolingParams, info: PoolingInfo) -> None:
        check_dimensions(params.dimensions, info)
        self.request = request
        self._params, self._info = params, info
        self._last: SequenceUpdate | None = None

    def begin(self, time: float) -> None:
        """It is in the engine's queue."""

    def take(self, update: SequenceUpdate) -> bool:
        """Take in an update; the engine ends the sequence by itself."""
        self._last = update if update.finish_reason is not None else None
        return False

    @property
    def finished(self) -> bool:
        return self._last is not None

    def output(self) -> PoolingRequestOutput[PoolingOutput]:
        """What came of it.

        Raises:
            OctavoError: the model failed.
        """
        assert self._last is not None
        if self._last.pooled is None:
            raise OctavoError(f"request {self.request.request_id}: {self._last.stop_reason}")
        data = self._values(self._last.pooled)
        request, cached = self.request, self._last.num_cached_tokens
        return PoolingRequestOutput(request.request_id, PoolingOutput(data), request.prompt_token_ids, cached)

    def _values(self, pooled: bytes) -> npt.NDArray[np.float32]:
        params, pooling = self._params, self.request.pooling
        assert pooling is not None
        if pooling.task == "classify":
            return probabilities(pooled, self._info, activation=params.use_activation)
        return vector(pooled, self._info, params.dimensions, normalise=params.use_activation)


def pairs(first: str | Sequence[str], second: str | Sequence[str]) -> list[tuple[str, str]]:
    """The texts to compare: one with each of many, or many one by one.

    Raises:
        BadRequest: they are of different number.
    """
    firsts = [first] if isinstance(first, str) else list(first)
    seconds = [second] if isinstance(second, str) else list(second)
    if len(firsts) == 1:
        firsts *= len(seconds)
    if len(firsts) != len(seconds):
        raise BadRequest(
            f"data_1 has {len(firsts)} texts and data_2 has {len(seconds)}: give one, or as many as data_2 has",
            "data_1",
        )
    return list(zip(firsts, seconds, strict=True))
