"""The shared nouns of requests that sample nothing and want a vector: embeddings, scores and classes.

As in `octavo.request`, these records are plain: they cross the wire, and know neither tensors nor text processing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Task = Literal["embed", "classify"]
"""What is made of a text: its vector, or the logits of the classes of a model that has a head for them."""

Method = Literal["cls", "mean", "last"]
"""Which of a text's final states become one: the first, the mean of all, or the last."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """What a request wants in place of tokens.

    Attributes:
        second: index of the first token of type 1: of a pair of texts, where the second one begins. None where there
            is one text, or the model's tokenizer gives both the same type.
    """

    task: Task
    second: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingInfo:
    """What a checkpoint says of its vectors; a model that says nothing is a decoder whose last state is taken.

    Attributes:
        tasks: what the model can do of `Task`.
        method: of pooling.
        dimensions: values of a vector, or of a vector before `dimensions` of a request cut it.
        normalise: whether vectors have length 1 unless a request says otherwise.
        matryoshka: lengths to which the model's makers say that a vector may be cut; () where they say nothing.
        max_tokens: of one text, special tokens included, as its makers say; None: as many as the model holds.
        prompts: texts put before a text, by name ("query", "document", ...).
        default_prompt: name of the one that is put where a request names none.
        labels: names of the classes.
        activation: from the logits of the classes to scores.
    """

    tasks: tuple[Task, ...] = ("embed",)
    method: Method = "last"
    dimensions: int = 0
    normalise: bool = True
    matryoshka: tuple[int, ...] = ()
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    labels: tuple[str, ...] = ()
    activation: Literal["sigmoid", "softmax", "identity"] = "identity"
