"""From what the engine pools (`SequenceUpdate.pooled`) to what is asked for: a vector, probabilities, a score.

The same for `LLM` and gateways. All of it is float64 inside and one text at a time, so that a text's answer has the
same bits whatever else was asked with it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from octavo.errors import BadRequest
from octavo.pooling import PoolingInfo, Task

Float32 = npt.NDArray[np.float32]

_CAN = {
    "generate": "generate text (LLM.generate; completions and chats)",
    "embed": "make embeddings (LLM.embed; /v1/embeddings)",
    "classify": "score and classify with its head (LLM.classify, LLM.score; /rerank, /score, /classify)",
}


def check_task(task: str, tasks: tuple[str, ...], name: str) -> None:
    """Raise BadRequest, which says what the model is for, unless it does a task.

    Args:
        task: of `Task`, or "generate".
        tasks: those of the model.
        name: of the model.
    """
    if task not in tasks:
        what = _CAN.get(task, f"do {task!r:.40}").partition(" (")[0]
        can = " or ".join(_CAN[each] for each in tasks) or "do nothing that is known here"
        raise BadRequest(f"{name} cannot {what}: it can {can}", "model")


def check_dimensions(dimensions: int | None, info: PoolingInfo) -> None:
    """Raise BadRequest unless a vector may be cut to so many values; None does not cut it."""
    if dimensions is None:
        return
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= info.dimensions:
        raise BadRequest(f"dimensions must be a whole number of 1 to {info.dimensions}", "dimensions")
    if info.matryoshka and dimensions not in (*info.matryoshka, info.dimensions):
        lengths = ", ".join(map(str, info.matryoshka))
        raise BadRequest(f"dimensions must be one that this model was trained for: {lengths}", "dimensions")


def check_prompt(name: str | None, info: PoolingInfo) -> str:
    """The text that goes before texts.

    Args:
        name: of one of the model's prompts; None: the one that its makers say, or none.

    Raises:
        BadRequest: the model has no such prompt.
    """
    name = name or info.default_prompt
    if name is not None and name not in info.prompts:
        known = f"it has {', '.join(map(repr, info.prompts))}" if info.prompts else "it has none"
        raise BadRequest(f"this model has no prompt {name!r:.80}: {known}", "prompt_name")
    return "" if name is None else info.prompts[name]


def truncated(ids: list[int], most: int | None, is_special: Callable[[int], bool]) -> list[int]:
    """A text's first tokens, and the special ones that end it.

    Args:
        most: tokens to keep, at least 1; None: all.
        is_special: of the tokenizer.
    """
    if most is None or len(ids) <= most:
        return ids
    first = len(ids)
    while first > len(ids) - most + 1 and is_special(ids[first - 1]):
        first -= 1
    return ids[: most - len(ids) + first] + ids[first:]


def vector(
    pooled: bytes, info: PoolingInfo, dimensions: int | None = None, *, normalise: bool | None = None
) -> Float32:
    """A text's vector.

    Args:
        pooled: of `SequenceUpdate`.
        dimensions: values to keep, the first ones; None: all. See `check_dimensions`.
        normalise: to length 1; None: as the model's makers do. One of length 0 stays as it is.
    """
    values = np.frombuffer(pooled, "<f4")[:dimensions].astype(np.float64)
    if info.normalise if normalise is None else normalise:
        values /= np.sqrt(np.sum(values * values)) or 1.0
    return values.astype(np.float32)


def probabilities(pooled: bytes, info: PoolingInfo, *, activation: bool | None = None) -> Float32:
    """The classes' scores, after the model's activation unless `activation` is False."""
    values = np.frombuffer(pooled, "<f4").astype(np.float64)
    if activation is not False and info.activation == "sigmoid":
        values = 1.0 / (1.0 + np.exp(-values.clip(-700.0)))
    elif activation is not False and info.activation == "softmax":
        values = np.exp(values - values.max())
        values /= np.sum(values)
    return values.astype(np.float32)


def cosine(first: Float32, second: Float32) -> float:
    """The cosine of the angle between two vectors; 0.0 where one has no length."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
    return float(np.clip(np.sum(a * b) / lengths, -1.0, 1.0)) if lengths else 0.0  # rounding may leave the range


def score_task(info: PoolingInfo) -> Task:
    """How two texts are compared: by a head with one class that reads both, or else by the cosine of their vectors.

    Raises:
        BadRequest: the model's head has several classes, none of which is a score.
    """
    if "classify" not in info.tasks:
        return "embed"
    if len(info.labels) != 1:
        raise BadRequest(
            f"this model has {len(info.labels)} classes, none of which is a score: use LLM.classify or /classify",
            "model",
        )
    return "classify"
